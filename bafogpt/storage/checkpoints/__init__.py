"""Checkpoints in a bucket.

- ``store``      uploads, finds, fetches and retires them: the module for other packages
- ``manifest``   the manifest of one: written last, trusted only when every byte matches
- ``upload``     finds out which of its files the bucket has, and sends the others
- ``retention``  which ones to keep
"""
