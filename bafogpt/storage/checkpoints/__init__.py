"""Checkpoints in a bucket.

- ``store``      uploads, finds, fetches and retires them: the module that others use
- ``manifest``   what one is: written last, believed only when every byte is right
- ``upload``     what of one is there already, and what must be sent
- ``retention``  which ones stay
"""
