"""The training loop: the whole run on one screen.

Every process runs :func:`train`. The position in the data is one integer, the whole state is saved, and nothing
depends on time or chance: a run that is killed and resumed ends with the same weights as an uninterrupted one.
"""

from __future__ import annotations

from bafogpt.train import parallel
from bafogpt.train.run import build_run
from bafogpt.train.step import train_step
from bafogpt.train.trainer_io import StopFlag, TrainerFiles, TrainOrder, WorkerResult


def train(order: TrainOrder, trainer_files: TrainerFiles, stop: StopFlag) -> WorkerResult:
    """Train until the last token, or until ``stop``; checkpoints appear in ``trainer_files``."""
    run = build_run(order, trainer_files)
    config, progress = run.config, run.state.progress
    batches = run.batches()
    while progress.step < config.steps:
        measured = train_step(run, next(batches))
        done, last = progress.step, progress.step == config.steps
        stopping = parallel.any_process(stop.requested)
        saving = done % config.checkpoint.every == 0 or last or stopping
        validating = config.validation.every and (done % config.validation.every == 0 or last)
        run.log.flush()  # the line of the step before, while the device works on this one
        if done % config.log_every == 0 or saving:  # so that a resumed run's first line continues the last one
            run.log.step(measured)
        if validating or saving:
            run.log.flush()  # check this step's loss before it is validated or saved
        if validating and run.validator:
            run.validator.validate()
        if saving and run.checkpointer.has_room(progress.step, must=last or stopping):
            run.checkpointer.save(run.state)
            run.log.restart_clock()
        if run.profiler.step(last=last or stopping):
            run.log.restart_clock()
        if stopping:
            break
    batches.close()
    run.checkpointer.wait()
    return WorkerResult("finished" if progress.step == config.steps else "stopped", progress.step, progress.samples)
