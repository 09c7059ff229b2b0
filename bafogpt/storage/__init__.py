"""Everything between a process and stored bytes.

- ``bucket``       a folder of objects, at any S3 endpoint or on local disk; the only way to the bytes
- ``connect``      what a bucket's URL and the settings mean: endpoint, credentials, retries
- ``failures``     the storage client's errors as errors that a user can act on
- ``lanes``        how work goes side by side
- ``embedded/``    this machine's own S3 server
- ``tokens/``      datasets: manifest, writer, stream
- ``transfer/``    one whole file there and back, resumable and verified
- ``checkpoints/`` uploads, finds, fetches and retires checkpoints, manifest last
- ``folders/``     models and other folders from anywhere to anywhere
- ``hub/``         the Hugging Face Hub
"""
