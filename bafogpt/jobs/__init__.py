"""Job and task files, read on your machine and on the rented one.

- ``project``     finds ``jobs/`` and ``sky/``
- ``job``         a job file (what is trained): ``extends:``, ``--set``, and the section ``supervisor:``
- ``tracking``    the section ``tracking:`` of a job
- ``task``        a task file (where it runs): a SkyPilot task, with the launch's options applied
- ``resolve``     a job by its file, or by the run that recorded it: ``runs/NAME``
- ``dataset``     the digest of a run's dataset
- ``limits``      what a run may cost, and how long it may take
- ``model_shape`` the sizes of a job's network, without torch
- ``image_ref``   references of container images
- ``env``         environment variables through which a launch configures the job
"""
