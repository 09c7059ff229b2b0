"""Access to stored data: buckets, datasets, checkpoints, transfers.

- ``bucket``         a folder of objects, at any S3 endpoint or on local disk; all access goes through it
- ``s3_client``      endpoint, credentials and retries of a bucket
- ``errors``         errors of the storage clients as errors that a user can act on
- ``json_manifest``  the strict parser of all manifests
- ``parallel``       work in parallel threads
- ``embedded/``      this machine's own S3 server
- ``tokens/``        datasets: manifest, writer, stream
- ``transfer/``      one file to or from a bucket, resumable and verified
- ``checkpoints/``   uploads, finds, fetches and retires checkpoints
"""
