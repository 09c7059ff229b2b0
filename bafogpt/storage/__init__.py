"""Buckets, the embedded S3 server, the token stream, checkpoints.

- ``bucket``      a folder of objects, at any S3 endpoint or on local disk; the only way to the bytes
- ``connect``     what a bucket's URL and the settings mean: endpoint, credentials, retries
- ``failures``    the storage client's errors as errors that a user can act on
- ``server``      leases on this machine's own S3 server; ``guardian`` is the process that holds it,
  ``embedded`` the files both share
- ``manifest``    the token manifest: shards, stages, hashes
- ``tokens``      writes a dataset, manifest last
- ``stream``      reads one: any span of tokens, every block verified
- ``checkpoints`` uploads, finds, fetches and retires checkpoints, manifest last
"""
