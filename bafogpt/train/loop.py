"""The pretraining loop: the whole run on one screen.

Every process runs :func:`pretrain`. The position in the data is one integer, the state is saved whole, and
nothing depends on time or chance: a run that is killed and resumed ends with the weights of one that never was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric

from bafogpt.core.errors import BafoError
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.store import CheckpointStore
from bafogpt.storage.tokens import manifest as manifests
from bafogpt.storage.tokens.stream import BlockCache, Samples, TokenStream, prefetch
from bafogpt.train import flops, parallel, shares
from bafogpt.train import metrics as metric
from bafogpt.train import model as models
from bafogpt.train.config import OptimizerConfig, PretrainConfig
from bafogpt.train.handoff import Handoff, Order, Result, StopFlag, checkpoint_name
from bafogpt.train.saving import CheckpointSaver
from bafogpt.train.schedule import learning_rate
from bafogpt.train.state import TrainState


def pretrain(order: Order, handoff: Handoff, stop: StopFlag) -> Result:
    """Train until the last token, or until ``stop``; checkpoints appear in ``handoff`` on the way."""
    run = _set_up(order, handoff)
    config, state = run.config, run.state
    batches = run.batches(first=state.progress.samples, last=config.steps * config.batch_samples)
    while state.progress.step < config.steps:
        measured = run.train_step(batches)
        done, last = state.progress.step, state.progress.step == config.steps
        stopping = run.any_process(stop.requested)
        saving = done % config.checkpoint.every == 0 or last or stopping
        if done % config.log_every == 0 or saving:  # so a resumed run's first line begins where the last one ended
            run.log_step(*measured)
        if config.validation.every and (done % config.validation.every == 0 or last):
            run.validate()
        if saving and run.may_save(must=last or stopping):
            run.saver.begin(state)
        if stopping:
            break
    batches.close()
    run.saver.finish()
    finished = state.progress.step == config.steps
    return Result("finished" if finished else "stopped", state.progress.step, state.progress.samples)


@dataclass
class _Run:
    """The objects that a run is made of, and what a step does with them."""

    order: Order
    handoff: Handoff
    fabric: Fabric
    model: Any
    state: TrainState
    train: Samples
    curriculum: manifests.Split
    """Where the stages of the training stream begin."""
    validation: Samples | None
    saver: CheckpointSaver
    log: metric.MetricsLog | None
    """Rank 0's; the others have none."""
    flops_per_token: float
    peak_flops: float
    """Of all devices together."""
    seconds_before: float
    started: float
    window_tokens: int = 0
    window_started: float = 0.0

    @property
    def config(self) -> PretrainConfig:
        return self.order.config

    def batches(self, first: int, last: int) -> Generator[torch.Tensor]:
        """This process's micro-batches, [micro, T+1] each, in the order of the stream."""
        config, fabric = self.config, self.fabric
        indices = shares.all_rank_samples(first, last, config.batch_samples, fabric.global_rank, fabric.world_size)
        rows: list[np.ndarray] = []
        reader = prefetch(self.train, indices, depth=config.data.prefetch)
        try:
            for _, tokens in reader:
                rows.append(tokens)
                if len(rows) == config.batch.micro:
                    yield _to_device(rows, fabric.device)
                    rows = []
        finally:
            reader.close()

    def train_step(self, batches: Iterator[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, float]:
        """One optimizer step. Returns loss and gradient norm, still on the device, and the learning rate."""
        config, fabric, progress = self.config, self.fabric, self.state.progress
        rate = learning_rate(
            progress.step, peak=config.optimizer.learning_rate, steps=config.steps, schedule=config.schedule
        )
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        micros = config.batch_samples // fabric.world_size // config.batch.micro
        total = torch.zeros((), device=fabric.device)
        for index in range(micros):
            with fabric.no_backward_sync(self.model, enabled=index < micros - 1):
                loss = models.loss_of(self.model, next(batches))
                fabric.backward(loss / micros)
            total += loss.detach() / micros
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optimizer.clip_norm)
        self.state.optimizer.step()
        self.state.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.validation_loss = None
        progress.samples += config.batch_samples
        self.window_tokens += config.batch.tokens
        return total, norm, rate

    def log_step(self, loss: torch.Tensor, norm: torch.Tensor, rate: float) -> None:
        """Bring the step's numbers to the host (the loop's only wait for the device) and write them down."""
        config, progress = self.config, self.state.progress
        mean = self._reduce(loss, "mean")
        gradient_norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        now = time.perf_counter()
        progress.seconds = self.seconds_before + now - self.started
        first = progress.samples - config.batch_samples * (self.window_tokens // config.batch.tokens)
        speed = self.window_tokens / (now - self.window_started)
        self.window_tokens, self.window_started = 0, now
        if not math.isfinite(mean) or not math.isfinite(gradient_norm):
            raise BafoError(
                f"loss {mean}, gradient norm {gradient_norm} at step {progress.step}, samples {first} to "
                f"{progress.samples - 1}; the last checkpoint is good",
                "lower train.optimizer.learning_rate and launch again with --resume",
            )
        if self.log is not None:
            self.log.write(
                step=progress.step,
                samples=[first, progress.samples],
                tokens=progress.step * config.batch.tokens,
                stage=metric.stage_at(self.curriculum, (progress.samples - 1) * config.data.sequence_length),
                loss=mean,
                learning_rate=rate,
                gradient_norm=gradient_norm,
                tokens_per_s=speed,
                mfu=speed * self.flops_per_token / self.peak_flops,
                seconds=progress.seconds,
                usd=progress.seconds / 3600 * self.order.price_per_hour,
            )

    @torch.no_grad()
    def validate(self) -> None:
        """Mean loss over the first samples of the validation split, always the same ones."""
        if self.validation is None:
            return
        fabric, micro = self.fabric, self.config.batch.micro
        count = min(self.config.validation.samples, self.validation.count) // fabric.world_size * fabric.world_size
        if count == 0:
            return
        own = list(shares.rank_samples(0, count, fabric.global_rank, fabric.world_size))
        total = torch.zeros((), device=fabric.device)
        self.model.eval()
        for start in range(0, len(own), micro):
            rows = [self.validation[index] for index in own[start : start + micro]]
            total += models.loss_of(self.model, _to_device(rows, fabric.device)) * len(rows)
        self.model.train()
        parallel.reshard(self.state.model)
        mean = self._reduce(total / len(own), "mean")
        self.window_started = time.perf_counter()
        self.state.progress.validation_loss = mean
        if self.log is not None:
            self.log.write(step=self.state.progress.step, validation_loss=mean, validation_samples=count)

    def any_process(self, flag: bool) -> bool:
        """Whether any process says so; all get the same answer, so all leave the loop at the same step."""
        if self.fabric.world_size == 1:
            return flag
        return self._reduce(torch.tensor(float(flag), device=self.fabric.device), "sum") > 0

    def _reduce(self, value: torch.Tensor, how: str) -> float:
        """A scalar over all processes, on the host."""
        reduced = self.fabric.all_reduce(value, reduce_op=how)
        assert isinstance(reduced, torch.Tensor)
        return reduced.item()

    def may_save(self, must: bool) -> bool:
        """Whether there is place for one more checkpoint on this disk; the supervisor takes them away as it sends them.

        Where there is none, and the checkpoint is not a ``must``, the job's ``when_behind`` says whether to wait.
        """
        config = self.config.checkpoint
        self.saver.finish()
        full = self.any_process(self.fabric.is_global_zero and len(self.handoff.pending()) >= config.max_pending)
        if full and config.when_behind == "skip" and not must:
            self.fabric.print(f"no checkpoint at step {self.state.progress.step}: {config.max_pending} wait to be sent")
            return False
        if full and self.fabric.is_global_zero:
            while len(self.handoff.pending()) >= config.max_pending:
                time.sleep(0.05)
        self.window_started = time.perf_counter()
        return True


def _set_up(order: Order, handoff: Handoff) -> _Run:
    """Everything a run is made of, restored to where it was."""
    config = order.config
    parallel.check_batch(config, parallel.world_size())
    bucket = Bucket.open(order.bucket)
    data = bucket.child(config.data.path)
    manifest = manifests.load(data)
    cache = BlockCache(handoff.folder / "cache", int(config.data.cache_gb * 1e9)) if config.data.cache_gb else None
    length = config.data.sequence_length
    train = Samples(TokenStream(data, manifest, "train", cache=cache), length)
    validation = None
    if config.validation.every and manifest.splits["validation"].tokens > length:
        validation = Samples(TokenStream(data, manifest, "validation", cache=cache), length)

    gpt_config = models.gpt_config(config.model, manifest.vocab_size)
    fabric = parallel.make_fabric(order)
    fabric.launch()
    gpt = models.new_gpt(gpt_config, tie_embeddings=config.model.tie_embeddings, seed=config.seed)
    parallel.prepare_blocks(gpt, config)
    wrapped = fabric.setup_module(gpt)
    optimizer = _adamw(gpt, config.optimizer, fused=order.device == "cuda")
    fingerprint = {
        "model": models.fingerprint(gpt_config, config.model.tie_embeddings),
        "data": manifest.digest,
        "sequence_length": length,
    }
    state = TrainState(gpt, optimizer, fingerprint)
    if order.resume_step is not None:
        state.load(handoff.resume / checkpoint_name(order.resume_step))
    elif config.model.checkpoint:
        state.load_weights(_fetch_weights(bucket, config.model.checkpoint, handoff.folder / "weights", fabric))
    now = time.perf_counter()
    return _Run(
        order=order,
        handoff=handoff,
        fabric=fabric,
        model=wrapped,
        state=state,
        train=train,
        curriculum=manifest.splits["train"],
        validation=validation,
        saver=CheckpointSaver(handoff),
        log=metric.MetricsLog(handoff.metrics(order.attempt)) if fabric.is_global_zero else None,
        flops_per_token=flops.flops_per_token(gpt_config, length),
        peak_flops=metric.peak_flops(fabric.device) * fabric.world_size,
        seconds_before=state.progress.seconds,
        started=now,
        window_started=now,
    )


def _adamw(model: torch.nn.Module, config: OptimizerConfig, *, fused: bool) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves norms alone."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.eps, fused=fused or None)


def _fetch_weights(bucket: Bucket, path: str, into: Path, fabric: Fabric) -> Path:
    """The newest complete checkpoint of a run, on this disk; fetched once a machine."""
    with fabric.rank_zero_first(local=True):
        found = CheckpointStore(bucket.child(path).child("checkpoints")).fetch_newest(into)
    if found is None:
        raise BafoError(f"{bucket.url}/{path} holds no complete checkpoint", f"bafogpt runs show {Path(path).name}")
    return found[1]


def _to_device(rows: list[np.ndarray], device: torch.device) -> torch.Tensor:
    """Samples stacked as [len(rows), T+1] int64."""
    return torch.from_numpy(np.stack(rows).astype(np.int64)).to(device, non_blocking=True)
