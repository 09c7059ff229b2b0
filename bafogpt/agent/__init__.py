"""What runs on the rented machine, between the task's command and the trainer.

- ``claim``         claims a run before anything works on it, and numbers the attempt
- ``setup``         ``bafogpt job setup``: a task's own ``setup:``
- ``supervisor``    ``bafogpt job run``: starts workers, restarts them, turns SIGTERM and limits into save, drain, exit
- ``preflight``     checks of a machine: driver, GPUs, disk, clock, an all-reduce (``collective``)
- ``machine_check`` what a job needs of its machine, held against ``preflight``
- ``workers``       the trainer processes of one machine
- ``watchdog``      watches the workers from outside: metrics, hangs, kills by the kernel
- ``budget``        what a run may cost and how long it may take
- ``multinode``     several nodes of one run, which agree through the bucket
- ``outcome``       how a run ends on a machine
- ``uploader``      uploads saved checkpoints to the bucket; ``hub_publisher``: to the Hugging Face Hub
- ``tracking``      sends metrics to Weights & Biases and MLflow
- ``exporters``     the Hub publisher and the trackers of a run, together
- ``provenance``    what the run is made of: data, versions, place
- ``system_stats``  GPUs, CPU, memory, disk of the machine
- ``recorder``      what the supervisor records, and its way to the bucket
"""
