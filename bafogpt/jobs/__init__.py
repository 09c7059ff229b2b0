"""Job and task files, read on your machine and on the rented one.

- ``project``   where ``jobs/`` and ``sky/`` are found
- ``job``       a job file (what is trained), resolved: ``extends:``, ``--set``
- ``task``      a task file (where): a SkyPilot task with the launch's flags applied
- ``tracking``  the ``tracking:`` section of a job
- ``image_ref`` references of container images
- ``resolve``   a job by its file or by the run that recorded it, ``runs/NAME``
"""
