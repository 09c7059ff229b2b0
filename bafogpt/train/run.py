"""A run: builds all its objects once and restores them."""

from __future__ import annotations

import functools
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

from lightning.fabric import Fabric
from litgpt.config import Config

from bafogpt.core.errors import ConfigError
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.tokens.manifest import TokenManifest
from bafogpt.storage.tokens.manifest import load as load_manifest
from bafogpt.storage.tokens.stream import BlockCache, Samples, TokenStream
from bafogpt.train import float8, memory_check, network, parallel
from bafogpt.train.batches import Batch, step_batches
from bafogpt.train.checkpointer import Checkpointer
from bafogpt.train.config import Sharding, TrainConfig, check_processes
from bafogpt.train.estimates.flops import flops_per_token
from bafogpt.train.learner import Learner, build_learner
from bafogpt.train.metrics import MetricsLog
from bafogpt.train.probes import collective_check
from bafogpt.train.profiler import StepProfiler
from bafogpt.train.step_logger import StepLogger
from bafogpt.train.trainer_io import TrainerFiles, TrainOrder, checkpoint_name
from bafogpt.train.validation import ValidationPlan, Validator, plan_validation


@dataclass(frozen=True, kw_only=True)
class TrainRun(Learner):
    """The objects of one run in one process."""

    train: Samples
    validator: Validator | None
    micro_batch: int
    """Samples that a process pushes through the model at once."""
    checkpointer: Checkpointer
    log: StepLogger
    profiler: StepProfiler

    def batches(self) -> Generator[list[Batch]]:
        """This process's micro-batches of each step from here to the end."""
        return step_batches(
            self.train,
            self.config,
            first=self.state.progress.samples,
            micro_batch=self.micro_batch,
            rank=self.fabric.global_rank,
            processes=self.fabric.world_size,
            device=self.fabric.device,
        )


def build_run(order: TrainOrder, trainer_files: TrainerFiles) -> TrainRun:
    """Build all objects of a run and restore its state."""
    check_processes(order.config, parallel.world_size())
    float8.check(order.config, gpu=order.device == "cuda")
    bucket = Bucket.open(order.bucket)
    manifest = load_manifest(bucket.child(order.config.data.path))
    spec = network.resolve_network(order.config, bucket, manifest.vocab_size)
    config, shape = network.resolve_config(order.config, spec, bucket), spec.shape
    order = replace(order, config=config)
    train, held_out = _open_samples(bucket, manifest, config, shape, trainer_files.folder / "cache")
    memory_check.check_packing(manifest.packing, config)
    documents = train.stream.is_packed or config.data.separate_documents
    fabric, micro_batch, sharding = _start(order, shape, trainer_files, documents=documents)
    learner = _restore(order, shape, fabric, sharding, bucket, manifest, train.bos, trainer_files)
    progress, writes = learner.state.progress, fabric.is_global_zero
    log = StepLogger(
        config,
        fabric,
        progress,
        curriculum=manifest.splits["train"],
        lines=MetricsLog(trainer_files.metrics(order.attempt)) if writes else None,
        flops_per_token=flops_per_token(shape, config.data.sequence_length, config.adapter),
    )
    steps = config.profile if writes else 0
    return TrainRun(
        **vars(learner),
        train=train,
        validator=Validator(learner, held_out, micro_batch, log) if held_out else None,
        micro_batch=micro_batch,
        checkpointer=Checkpointer(trainer_files, config.checkpoint),
        log=log,
        profiler=StepProfiler(trainer_files.profile, steps=steps, attempt=order.attempt, done=progress.step),
    )


def _restore(
    order: TrainOrder,
    shape: Config,
    fabric: Fabric,
    sharding: Sharding,
    bucket: Bucket,
    manifest: TokenManifest,
    bos: int | None,
    trainer_files: TrainerFiles,
) -> Learner:
    """The learner with the state of the checkpoint to resume from, or with its first weights."""
    config, resumes = order.config, order.resume_step is not None
    load_first_weights = functools.partial(
        network.load_first_weights,
        config=config,
        shape=shape,
        fabric=fabric,
        bucket=bucket,
        tokenizer=manifest.tokenizer,
        into=trainer_files.folder / "weights",
    )
    learner = build_learner(
        config,
        shape,
        fabric,
        sharding=sharding,
        identity={"data": manifest.digest, "sequence_length": config.data.sequence_length, "bos": bos},
        empty=config.model.checkpoint is not None or (resumes and config.adapter is None),
        load_base=load_first_weights,
    )
    if order.resume_step is not None:
        learner.state.load(trainer_files.resume / checkpoint_name(order.resume_step))
    elif config.adapter is None:
        load_first_weights(learner.state.model)
    return learner


def _start(
    order: TrainOrder, shape: Config, trainer_files: TrainerFiles, *, documents: bool
) -> tuple[Fabric, int, Sharding]:
    """Check that the job fits, connect the processes, and choose micro-batch and sharding."""
    config, gpu = order.config, order.device == "cuda"
    memory_check.check_length(shape, config)
    if gpu:
        memory_check.check_attention(shape, config)
    micro_batch, sharding = memory_check.choose_micro_batch(shape, config, gpu=gpu)
    fabric = parallel.make_fabric(config, order.device, sharding)
    fabric.launch()
    if fabric.world_size > 1:
        parallel.sum_int(0)  # waits for all processes: a late one is no sign of a broken machine
        with collective_check.deadline(order.collective_timeout_s, trainer_files):
            speed = collective_check.all_reduce(fabric.device)
        fabric.print(f"all-reduce over {fabric.world_size} processes: {speed:.2f} GB/s")
    if gpu and not config.batch.micro_batch_size:
        micro_batch = memory_check.probe_micro_batch(
            shape, config, micro_batch=micro_batch, sharding=sharding, documents=documents
        )
        micro_batch = parallel.min_int(micro_batch)
    return fabric, micro_batch, sharding


def _open_samples(
    bucket: Bucket, manifest: TokenManifest, config: TrainConfig, shape: Config, folder: Path
) -> tuple[Samples, ValidationPlan | None]:
    """The samples to train on and, unless ``validation.every`` is 0, those to validate on.

    Raises :class:`ConfigError` where not one sample was held out for validation.
    """
    data = bucket.child(config.data.path)
    rows = shape.padded_vocab_size if shape.padded_vocab_size < manifest.vocab_size else None
    cache = BlockCache(folder, int(config.data.cache_gb * 1e9)) if config.data.cache_gb else None
    length, split, bos = config.data.sequence_length, manifest.splits["validation"], _bos(manifest, config)
    train = Samples(TokenStream(data, manifest, "train", cache=cache), length, bos, rows)
    if not config.validation.every:
        return train, None
    if split.tokens <= length:
        raise ConfigError(
            f"{config.data.path} holds {split.tokens} tokens for validation, less than one sample of {length}",
            "--set train.validation.every=0, or prepare the data with a larger --validation",
        )
    held_out = Samples(TokenStream(data, manifest, "validation", cache=cache), length, bos, rows)
    return train, plan_validation(held_out, split, config.validation.samples)


def _bos(manifest: TokenManifest, config: TrainConfig) -> int | None:
    """The id that every sample begins with, if any; packed conversations have it in their template.

    Raises :class:`ConfigError` where ``data.bos`` asks for it and the tokenizer has none.
    """
    tokenizer = manifest.tokenizer
    if manifest.packing is not None or not (tokenizer.add_bos if config.data.bos is None else config.data.bos):
        return None
    if tokenizer.bos_id is None:
        raise ConfigError(f"tokenizer {tokenizer.name} has no <bos>", "--set train.data.bos=null")
    return tokenizer.bos_id
