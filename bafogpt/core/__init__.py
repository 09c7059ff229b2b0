"""The lowest package: it imports no other.

- ``errors``   exceptions for users: message, hint, exit code
- ``schema``   dataclasses from YAML and JSON; unknown keys are errors with "did you mean"
- ``settings`` settings from flag, environment, project file, user file, default
- ``files``    atomic writes, safe names, free space
- ``digest``   content hashes written as ``algorithm:hex``
- ``process``  ending processes with all their descendants
- ``nvidia_smi`` the GPUs of this machine and their state
- ``terms``    licence files and the notice of a Gemma derivative
"""
