"""This machine's own S3 server, for jobs that rent nothing.

- ``server``    leases: it runs for as long as somebody needs it
- ``guardian``  the process that holds it
- ``files``     what both of them know of each other, on disk
"""
