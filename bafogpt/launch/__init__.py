"""What runs on your machine: a job becomes a priced plan, and an engine runs it somewhere.

- ``plan``          a job and a task, frozen, with a name and a price: all that an engine needs
- ``catalog``       which GPUs are offered where, from SkyPilot's catalog or the dated copy in ``prices/``
- ``throughput``    how fast a job will train: measured by an earlier run, or projected
- ``quote``         what a launch costs, and whether its limits make sense
- ``forecast``      ``bafogpt cloud plan``: every offer with its hours and its total
- ``doctor``        ``bafogpt cloud doctor``: everything that a launch needs, tried
- ``sky_probe``     what only SkyPilot can tell, asked in a process of its own
- ``images``        the container image of the tasks: pinned in one file, repeated in every task, checked
- ``code_snapshot`` the code that a launch sends, and its name
- ``engines``       ``local`` and ``skypilot`` behind one small interface
- ``reap``          ends rented machines that nothing else would end
"""
