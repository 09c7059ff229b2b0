"""The SkyPilot engine: rented machines that terminate themselves.

- ``engine``          the interface of :mod:`bafogpt.launch.engines.base`
- ``status``          a run's state, from SkyPilot and from its record in the bucket
- ``launcher``        a launch; when it fails, everything that was rented is returned
- ``launch_watchdog`` the process that does the same when the client dies during a launch
- ``teardown``        autodown verified after every launch, ``down`` repeated until the cluster is gone
- ``task_config``     the task as SkyPilot gets it: label, autodown, code, secrets
- ``client``          SkyPilot's SDK; the only module that imports ``sky``
- ``ssh``             ssh, rsync and port forwarding
- ``log_filter``      SkyPilot's log streams, reduced to the run's own lines
- ``errors``          SkyPilot's exceptions as our errors
"""
