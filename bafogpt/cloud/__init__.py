"""A job becomes a plan, an engine runs it somewhere, the supervisor keeps it alive, its records stay in the bucket.

On the machine where you type:

- ``project``    where ``jobs/`` and ``sky/`` are found
- ``job``        a job file (what is trained), resolved: ``extends:``, ``--set``
- ``task``       a task file (where): a SkyPilot task with the launch's flags laid on it
- ``images``     the container image that the tasks run in: pinned in one file, repeated in every task, checked
- ``reference``  how an image is named
- ``plan``       both, frozen, with a name and a price: all that an engine needs
- ``engines``    ``local`` and ``skypilot`` behind one small interface

On the machine that runs the job:

- ``claim``      before anything works on a run: nobody else is at it, the attempt has a number
- ``supervisor`` ``bafogpt job run``: starts trainers, restarts them, turns SIGTERM into save-drain-exit
- ``trainers``   the trainer processes of one machine, as one thing
- ``uploads``    carries saved checkpoints to the bucket while training goes on
- ``publishing`` ... and to the Hugging Face Hub
- ``recorder``   what the supervisor writes down, and its way to the bucket
- ``feed``       append-only records (logs, metrics, events) in a store that cannot append

Anywhere, with the bucket alone:

- ``runs``       run records: what ran, how far it is, how it ended
- ``report``     one run as a terminal summary and as one HTML file with pictures
"""
