"""A run's records in its bucket: their format, read and written by both sides.

- ``store``         records of runs: what ran, how far it is, how it ended
- ``log_segments``  append-only files (logs, metrics, events) in a store that cannot append
"""
