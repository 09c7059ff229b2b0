"""The fault bench: a run under kills and over a bad line must end as one that was left in peace.

- ``proxy``      an HTTP proxy that answers 5xx, resets, stalls, truncates, flips bits, limits the rate, and can kill
- ``fault_script`` which request gets which fault: from a seed, or from a list
- ``points``     inside a process under test: it ends itself at a given file operation, as ``kill -9`` would end it
- ``victim``     the supervisor under test, ``worker`` a trainer under test, ``tiny`` its training without torch
- ``ledger``     what a trainer consumed, line by line, and whether it is what it must be, in order
- ``place``      a folder and a server to work in; ``plan`` what is planned for a run
- ``lane``       one run: started, killed, started again, to its end; then compared with the one left in peace
- ``campaign``   many runs under planned kills, and the table of what was killed where
- ``weather``    many checkpoints and streams through the proxy under scripts of faults

``./scripts/bench faults`` runs all of it for long, the tests here a little of it.
"""
