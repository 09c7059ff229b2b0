"""The rented machine: everything between the task's command and the trainer.

- ``supervisor``    ``bafogpt job run``: starts workers, restarts them, turns SIGTERM and limits into save, upload, exit
- ``setup``         ``bafogpt job setup``: a task's own ``setup:``
- ``claim``         claims a run and numbers the attempt; ``provenance``: its data, versions, machine
- ``attempt``       what node 0 and the other nodes share; ``outcome``: how a run ends
- ``workers``       the trainer processes of one machine
- ``progress``      reads the workers' metrics; ``watchdog``: hangs; ``oom``: kills by the kernel
- ``machine_check`` what a job needs of its machine; ``preflight``: the checks; ``collective``: an all-reduce
- ``budget``        limits of cost and time
- ``recorder``      logs, events, the run's record, and their upload; ``system_stats``: GPUs, CPU, memory, disk
- ``uploader``      uploads saved checkpoints to the bucket
- ``exporters``     copies elsewhere: ``hub_publisher`` (Hugging Face Hub), ``tracking`` (W&B, MLflow)
- ``multinode``     several nodes of one run, which agree through the bucket
"""
