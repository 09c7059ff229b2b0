"""The fault bench: a run under kills and over a bad network must end exactly as an undisturbed one.

- ``proxy``           an HTTP proxy that answers 5xx, resets, stalls, truncates, flips bits, limits the rate, kills
- ``fault_script``    which request gets which fault, from a seed
- ``points``          inside a process under test: it kills itself at a given file operation
- ``victim``          the supervisor under test, ``worker`` a trainer, ``tiny_loop`` its training without torch
- ``ledger``          the samples that a trainer consumed, and whether they are the right ones in the right order
- ``bench``           a folder and a server; ``plan``: the training and the kills of a run
- ``run_under_test``  one run: started, killed, started again, to its end; then compared with an undisturbed one
- ``campaign``        many runs under planned kills, and the table of what was killed where
- ``bad_network``     many checkpoints and streams through the proxy under scripts of faults

``./scripts/bench faults`` runs all of it for long, the tests here a little of it.
"""
