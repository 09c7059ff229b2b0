"""What is trained, and how: one loop for one process or many, on CPU or GPU.

Read :mod:`~bafogpt.train.loop` first; it is the whole run on one screen.

- ``config``    the ``train:`` section of a job file: data, model, batch, optimizer, schedule, checkpoints
- ``handoff``   what the supervisor gives a trainer and what it gets back: files in one folder
- ``worker``    ``python -m bafogpt.train.worker FOLDER``: one trainer process, its errors written down
- ``loop``      the pretraining loop
- ``model``     litgpt's GPT from a configuration; loss
- ``flops``     floating point operations a token costs, and those that a GPU can do
- ``parallel``  Fabric and FSDP2
- ``shares``    who reads which samples
- ``state``     the one TrainState: what must come back exactly after a kill
- ``saving``    checkpoints written by a thread while training goes on
- ``schedule``  warm-up and cosine
- ``metrics``   loss, tokens a second, MFU, money: one JSON line a step

``config``, ``flops`` and ``handoff`` import no torch, because the launcher and the supervisor read them too.
"""
