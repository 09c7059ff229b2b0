"""Folders of files, models above all, from anywhere to anywhere: here, S3, the Hub.

- ``sync``       copies one; what is there already stays, what was cut off goes on
- ``locations``  what a path or URL on the command line names
- ``listing``    which files there are, and what is known of them
- ``models``     the manifest of a model folder
- ``upkeep``     is every byte right, how much is it, what does nobody need
"""
