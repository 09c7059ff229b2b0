"""What is trained, and how: one loop for one process or many, on CPU or GPU.

Read :mod:`~bafogpt.train.loop` first; it is the whole run on one screen.

- ``config``      the ``train:`` section of a job file: data, model, batch, optimizer, schedule, checkpoints
- ``handoff``     what the supervisor gives a trainer and what it gets back: files in one folder
- ``worker``      ``python -m bafogpt.train.worker FOLDER``: one trainer process, its errors written down
- ``loop``        the training loop
- ``run``         the objects that a run is made of, built and restored
- ``network``     which network: a new one by its name, or the one of the folder that it starts from
- ``batches``     the stream as micro-batches; ``shares``: who reads which samples
- ``step``        one optimizer step; ``schedule``, ``optimizer``: its learning rate, its AdamW, in 32 bits or in 8
- ``validation``  loss on text that is never trained on
- ``fit``         whether it fits a device; ``memory``: the model of what it takes
- ``finetune``    the base frozen and quantised, and the adapter on it
- ``parallel``    Fabric and FSDP2; ``collective_check``: a first all-reduce with a deadline
- ``state``       the one TrainState: what must come back exactly after a kill
- ``saving``      checkpoints written by a thread while training goes on
- ``runlog``      speed, loss and money of each step; ``metrics``: the lines they are written in
- ``tracing``     a profile of some steps, on request
- ``flops``       floating point operations a token costs; ``gpus``: what each card can do
- ``step_time``   the model of a step's time; ``recipes``: the fastest values that fit a card

``config``, ``flops``, ``gpus``, ``handoff``, ``memory``, ``recipes`` and ``step_time`` import no torch, because the
launcher and the supervisor read them too.
"""
