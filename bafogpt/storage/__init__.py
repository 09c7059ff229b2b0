"""Buckets, the embedded S3 server, the token stream, checkpoints.

- ``bucket``      a folder of objects, at any S3 endpoint or on local disk; the only way to the bytes
- ``connect``     what a bucket's URL and the settings mean: endpoint, credentials, retries
- ``failures``    the storage client's errors as errors that a user can act on
- ``server``      leases on this machine's own S3 server; ``guardian`` is the process that holds it,
  ``embedded`` the files both share
- ``manifest``    the token manifest: shards, stages, hashes
- ``tokens``      writes a dataset, manifest last
- ``stream``      reads one: any span of tokens, every block verified; ``blocks`` verifies, and caches on disk
- ``transfer``    whole files there and back, resumable and verified: ``sending`` (in parts: ``multipart``),
  ``fetching``, ``bandwidth``; ``lanes`` is how they go side by side
- ``checkpoints`` uploads, finds, fetches and retires checkpoints, manifest last; ``checkpoint`` is that manifest,
  ``checkpoint_upload`` what of one must be sent, ``retention`` which ones stay
- ``sync``        copies a folder of files from anywhere to anywhere; ``locations`` says what a path or URL names,
  ``listing`` what is there, ``models`` is the manifest of a model folder
- ``hub``         the Hugging Face Hub read as a bucket; ``hub_push`` makes a commit there, ``lfs`` sends the large
  files for it, ``card`` is the model card
- ``upkeep``      by the manifests: is every byte right, how much is it, what does nobody need
"""
