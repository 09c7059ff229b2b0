"""What runs on the rented machine.

- ``preflight``   checks of the machine before data or weights are fetched: driver, GPUs, disk, clock, all-reduce
- ``collective``  that all-reduce, in processes of its own, with a deadline
- ``trainers``    the trainer processes of one machine, started and ended together

No module here imports torch.
"""
