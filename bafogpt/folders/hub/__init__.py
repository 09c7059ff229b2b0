"""The Hugging Face Hub.

- ``repository``  its client, its errors, and a repository read as a bucket
- ``push``        files into a repository, by one commit
- ``lfs``         large files for it, in resumable parts
- ``card``        the model card
"""
