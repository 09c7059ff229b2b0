"""Datasets of tokens.

- ``manifest``  shards in their order, stages, hashes
- ``writer``    writes a dataset, the manifest last
- ``stream``    reads any span of tokens, and samples cut by arithmetic
- ``blocks``    the blocks below it: verified, cached on disk
"""
