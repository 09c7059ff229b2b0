"""The training loop: the whole run on one screen.

Every process runs :func:`train`. The position in the data is one integer, the state is saved whole, and nothing
depends on time or chance: a run that is killed and resumed ends with the weights of one that never was.
"""

from __future__ import annotations

from bafogpt.train import parallel
from bafogpt.train.run import set_up
from bafogpt.train.step import train_step
from bafogpt.train.trainer_io import Handoff, Order, Result, StopFlag


def train(order: Order, handoff: Handoff, stop: StopFlag) -> Result:
    """Train until the last token, or until ``stop``; checkpoints appear in ``handoff`` on the way."""
    run = set_up(order, handoff)
    config, progress = run.config, run.state.progress
    batches = run.batches()
    while progress.step < config.steps:
        measured = train_step(run, next(batches))
        done, last = progress.step, progress.step == config.steps
        stopping = parallel.any_process(stop.requested)
        saving = done % config.checkpoint.every == 0 or last or stopping
        validating = config.validation.every and (done % config.validation.every == 0 or last)
        run.log.settle()  # the step before: its numbers are there by now, and the device has this one to do
        if done % config.log_every == 0 or saving:  # so a resumed run's first line begins where the last one ended
            run.log.step(measured)
        if validating or saving:
            run.log.settle()  # no loss is validated or saved before it was looked at
        if validating and run.validator:
            run.validator.validate()
        if saving and run.saver.may_save(progress.step, must=last or stopping):
            run.saver.begin(run.state)
            run.log.restart_clock()
        if run.tracer.step(last=last or stopping):
            run.log.restart_clock()
        if stopping:
            break
    batches.close()
    run.saver.finish()
    return Result("finished" if progress.step == config.steps else "stopped", progress.step, progress.samples)
