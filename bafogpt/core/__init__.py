"""What every floor needs and what needs nothing of theirs.

- ``errors``   the exceptions a user can meet: what is wrong, what to type next, the exit code
- ``schema``   dataclasses from YAML, strictly: an unknown key is an error with "did you mean"
- ``settings`` who wins: flag, environment, project file, user file, default
- ``files``    atomic writes, safe names, free space
- ``digest``   content hashes written as ``algorithm:hex``
- ``process``  process groups that end completely
- ``nvidia_smi`` which GPUs this machine has, and how they are
"""
