"""Folders of files, models above all: on local disk, in S3, on the Hub.

- ``sync``      copies a folder; files that have not changed stay, and an interrupted copy resumes
- ``uri``       parses a path or URL of the command line
- ``listing``   the files of a folder and their known hashes
- ``manifest``  the manifest of a model folder
- ``gc``        verifies every byte, counts sizes, removes what no manifest names
- ``hub/``      the Hugging Face Hub: repositories, large files, model cards
"""
