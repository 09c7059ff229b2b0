"""A trainer without a model: the real trainer files, a real process, real signals, steps of a hundredth of a second.

FAKE_WORKER sets its behaviour: ``crash_at=N`` exits with code 7 at step N of every start,
``fail`` ends with a failure that no retry helps, ``deaf`` ignores SIGTERM, ``best_at=N`` makes step N's
checkpoint the best, ``hang_at=N`` hangs after step N of the first start, ``print=NAME`` prints
an environment variable.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from bafogpt.core import files
from bafogpt.train.trainer_io import StopFlag, TrainerFiles, WorkerResult, checkpoint_name, read_staged


def main() -> int:
    faulthandler.register(signal.SIGUSR1)
    trainer_files = TrainerFiles(Path(sys.argv[1]))
    order = trainer_files.read_order()
    behaviour = dict(part.partition("=")[::2] for part in os.environ.get("FAKE_WORKER", "").split(",") if part)
    if name := behaviour.get("print"):
        print(f"{name}={os.environ.get(name)}", flush=True)
    stop = StopFlag()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in behaviour else lambda *_: stop.set())
    step = samples = 0
    if order.resume_step is not None:
        folder = trainer_files.resume / checkpoint_name(order.resume_step)
        saved = read_staged(folder)
        step, samples = saved.step, saved.samples
        assert (folder / "weights").read_text() == f"weights of step {step}"
    if "fail" in behaviour:
        trainer_files.write_result(0, WorkerResult("failed", 0, 0, "the job is wrong", "mend the job", 2, retry=False))
        return 2
    config = order.config
    while step < config.steps and not stop.requested:
        time.sleep(float(behaviour.get("step_s", "0.01")))
        step += 1
        if step == int(behaviour.get("crash_at", "-1")):
            os._exit(7)
        if step == int(behaviour.get("hang_at", "-1")) and order.resume_step is None:
            wait_for_ever()
        line = {"step": step, "samples": [samples, samples + config.batch_samples], "loss": 5 / step}
        line |= {"learning_rate": 0.1, "tokens_per_s": 1.0, "mfu": 0.1, "stage": "news", "seconds": step}
        samples += config.batch_samples
        with trainer_files.metrics(order.attempt).open("a") as file:
            file.write(json.dumps(line) + "\n")
        if step % config.checkpoint.every == 0 or step == config.steps or stop.requested:
            save(trainer_files, step, samples, loss=abs(step - int(behaviour.get("best_at", "0"))))
    done = step == config.steps
    trainer_files.write_result(0, WorkerResult("finished" if done else "stopped", step, samples))
    return 0


def wait_for_ever() -> None:
    threading.Event().wait()


def save(trainer_files: TrainerFiles, step: int, samples: int, loss: float = 0) -> None:
    partial = trainer_files.partial(step)
    partial.mkdir()
    files.write_atomic(partial / "weights", f"weights of step {step}")
    trainer_files.commit(partial, {"step": step, "samples": samples, "validation_loss": loss})


if __name__ == "__main__":
    sys.exit(main())
