"""Whole files between local disk and buckets: in parallel, resumable, verified.

- :func:`send`   local file or any other source → object. Verified by a checksum that the server is known to check, by
  its MD5, or by reading the object back.
- :func:`fetch`  object → local file. Verified by its digest.

Both resume after a ``kill -9``: ``send`` sends at most one part twice, ``fetch`` fetches at most the ranges in flight
twice. A :class:`Bandwidth` limits all the transfers it is given to.
"""

from bafogpt.storage.transfer.bandwidth import Bandwidth
from bafogpt.storage.transfer.download import fetch
from bafogpt.storage.transfer.upload import PART_BYTES, Sent, etag_of, part_bytes, send

__all__ = ["PART_BYTES", "Bandwidth", "Sent", "etag_of", "fetch", "part_bytes", "send"]
