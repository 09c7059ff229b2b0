"""A run's records in its bucket: their format, read and written by both sides of a launch.

- ``store``         run records: what runs, its progress, how it ended
- ``usage``         hours and dollars
- ``log_segments``  append-only files (logs, metrics, events) in a store that cannot append
- ``fields``        reads fields of records that may be missing or of another type
"""
