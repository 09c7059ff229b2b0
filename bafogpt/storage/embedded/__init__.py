"""This machine's own S3 server, for local runs.

- ``server``          leases: the server runs while any process holds one
- ``server_process``  the process that starts and stops it
- ``files``           its files, which both of them use
"""
