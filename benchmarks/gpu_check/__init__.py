"""``./scripts/gpu-check``: what a bare GPU machine gets right, and how fast it is.

::

    __main__.py      the parts in their order, and the command line
    runner.py        one part in a process of its own, with a time limit; one JSON line a part
    part.py          that process
    report.py        what a part writes down while it runs
    machine.py       the card, its products and its bandwidths
    correctness.py   equal (GPU against CPU), resume, generate
    kernels.py       attention's kernels and their block sizes; the fused loss
    speed.py         throughput, compilation, QLoRA, fp8
    target.py        the best row against the target
    models.py        models, batches and timing that the parts share

Runner and report import no torch: a broken installation is a red part, not the end.
"""
