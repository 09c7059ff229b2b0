"""Datasets of tokens.

- ``manifest``  what is known of one: shards in their order, stages, hashes
- ``writer``    makes one, the manifest last
- ``stream``    reads one: any span of tokens, in samples cut by arithmetic
- ``blocks``    the bytes below it: verified once, cached on disk
"""
