"""The Hugging Face Hub.

- ``repository``  its client, what its failures mean, and a repository read as a bucket
- ``push``        files into a repository, by one commit
- ``lfs``         the large ones for it, in parts that outlive a kill
- ``card``        the model card
"""
