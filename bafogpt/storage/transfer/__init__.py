"""Whole files between local disk and buckets, and between buckets: side by side, resumable, verified.

- :func:`send`   local file → object. Proved by a checksum that the server is known to verify, or read back.
- :func:`fetch`  object → local file. Proved by its digest.
- :func:`copy`   object → object of another bucket, through memory.

All of them go on after a ``kill -9`` where they were: ``send`` and ``copy`` send at most one part twice, ``fetch``
fetches at most the ranges that were on their way twice. A :class:`Bandwidth` bounds all the transfers it is given to.
"""

from bafogpt.storage.transfer.bandwidth import Bandwidth
from bafogpt.storage.transfer.download import fetch
from bafogpt.storage.transfer.upload import PART_BYTES, Sent, copy, etag_of, part_bytes, send

__all__ = ["PART_BYTES", "Bandwidth", "Sent", "copy", "etag_of", "fetch", "part_bytes", "send"]
