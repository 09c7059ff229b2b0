"""The SkyPilot engine: machines rented by the hour, which end themselves.

- ``engine``   the interface of :mod:`bafogpt.launch.engines.base`
- ``sight``    what SkyPilot and the bucket know of a run, as one
- ``launching`` a launch; or, where it breaks off, all given back
- ``client``   SkyPilot's SDK, as far as it is used; the only module that imports ``sky``
- ``tasks``    a plan's task as SkyPilot gets it: label, guard, code, secrets
- ``guard``    teardown: autodown looked at after every launch, down until gone
- ``watchman`` the process that does so when the client dies in the middle of a launch
- ``reach``    ssh, copies and ports
- ``lines``    SkyPilot's streams as the run's own lines
- ``failures`` SkyPilot's exceptions as two lines
"""
