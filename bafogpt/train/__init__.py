"""The trainer: one loop for one process or many, on CPU or GPU.

Read :mod:`~bafogpt.train.loop` first: it is the whole run on one screen.

- ``config``       the ``train:`` section of a job file: data, model, batch, optimizer, schedule, checkpoints
- ``trainer_io``   the files that supervisor and trainer exchange
- ``worker``       ``python -m bafogpt.train.worker FOLDER``: one trainer process
- ``loop``         the training loop
- ``run``          builds the objects of a run and restores them
- ``network``      which network is trained: a new one by its name, or that of ``model.checkpoint``
- ``learner``      the network on its devices, with adapter and optimizer
- ``batches``      the token stream as micro-batches
- ``step``         one optimizer step
- ``optimizer``    learning rate schedule and AdamW, in 32 or 8 bits; ``float8``: linear layers in fp8
- ``parallel``     Fabric, FSDP2 and sums over all processes
- ``validation``   loss on text that is never trained on
- ``memory_check`` whether a job fits the device, and the largest micro-batch that does
- ``state``        the TrainState: what a checkpoint holds
- ``checkpointer`` writes checkpoints in the background
- ``step_logger``  speed, loss and cost of each step; ``metrics``: the lines they are written in
- ``profiler``     a profile of some steps, on request
- ``estimates``    FLOPs, memory and time of a step, GPU data sheets, and the fastest settings that fit
- ``probes``       programs that try something on the GPUs first: whole steps, an all-reduce

``config``, ``trainer_io`` and ``estimates`` import no torch, because launcher and supervisor read them too.
"""
