"""What runs on your machine: a job becomes a priced plan, and an engine runs it somewhere.

- ``plan``          a job, a task and a name, frozen, with a price: the input of an engine
- ``catalog``       GPU prices by cloud: SkyPilot's catalog, or the dated copy in ``prices/``
- ``throughput``    how fast a job will train: measured by an earlier run, or projected
- ``quote``         the price of a launch, and whether its limits make sense
- ``forecast``      ``bafogpt cloud plan``: every offer with its hours and its cost
- ``doctor``        ``bafogpt cloud doctor``: checks of everything that a launch needs
- ``sky_probe``     questions to SkyPilot in a separate process, with a deadline
- ``images``        the container image of the tasks: pinned in one file, repeated in every task, checked
- ``code_snapshot`` the code that a launch sends, and its version
- ``engines``       ``local`` and ``skypilot`` behind one small interface
- ``reap``          ends rented machines that nothing else would end
"""
