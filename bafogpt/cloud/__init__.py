"""A job becomes a plan, an engine runs it somewhere, the supervisor keeps it alive, its records stay in the bucket.

On the machine where you type:

- ``project``    where ``jobs/`` and ``sky/`` are found
- ``job``        a job file (what is trained), resolved: ``extends:``, ``--set``
- ``task``       a task file (where): a SkyPilot task with the launch's flags laid on it
- ``images``     the container image that the tasks run in: pinned in one file, repeated in every task, checked
- ``reference``  how an image is named
- ``recorded``   ... or the job of a run that was: ``runs/NAME``
- ``plan``       both, frozen, with a name and a price: all that an engine needs
- ``prices``     which GPUs are offered where, from SkyPilot's catalog or the dated few in ``catalog/``
- ``throughput`` how fast a job will be: measured by an earlier run, or projected
- ``estimate``   what a launch costs, and whether its budget makes sense
- ``outlook``    ``bafogpt cloud plan``: every offer with its hours and its total
- ``doctor``     ``bafogpt cloud doctor``: everything that a launch needs, tried
- ``probe``      what only SkyPilot can tell, asked in a process of its own
- ``workdir``    the code that a launch sends, and its name
- ``engines``    ``local`` and ``skypilot`` behind one small interface
- ``reap``       ends rented machines that nothing else would end

On the machine that runs the job:

- ``claim``      before anything works on a run: nobody else is at it, the attempt has a number
- ``preparation`` ``bafogpt job setup``: a task's own ``setup:``, whose failure is written down
- ``supervisor`` ``bafogpt job run``: starts trainers, restarts them, turns SIGTERM and limits into save-drain-exit
- ``machine_check`` what a job needs of its machine, held against :mod:`bafogpt.agent.preflight` before it starts
- ``watch``      how they get on, seen from outside: metrics, hangs, kills by the kernel
- ``budget``     what the run may cost and take, and what each attempt has
- ``crew``       the nodes of one run, and how they agree by way of the bucket; ``lead`` is node 0's side of it
- ``follower``   the supervisor of the other nodes
- ``ending``     how a run ends on a machine
- ``uploads``    carries saved checkpoints to the bucket while training goes on
- ``publishing`` ... and to the Hugging Face Hub
- ``tracking``   metrics sent on to Weights & Biases and MLflow, and what that needs; ``trackers``: those services
- ``tracker``    the process that sends them; ``sidecar``: that process seen from the supervisor
- ``companions`` the publisher and the trackers of a run, as one thing
- ``provenance`` what the run is made of: data, versions, place
- ``vitals``     how its machine is: GPUs, CPU, memory, disk
- ``recorder``   what the supervisor writes down, and its way to the bucket
- ``feed``       append-only records (logs, metrics, events) in a store that cannot append

Anywhere, with the bucket alone:

- ``runs``       run records: what ran, how far it is, how it ended
- ``compare``    what differs between two runs
- ``top``        how a run is right now
- ``scalars``    which number of its records goes under which tag
- ``tensorboard`` its metrics as TensorBoard's event files
- ``cost``       what runs have cost so far and will have cost at their end
- ``modelcard``  what a model card tells of a run; ``release``: a run's model made ready for others
- ``report``     one run as a terminal summary and as one HTML file with pictures
"""
