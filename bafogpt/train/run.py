"""A run: all the objects it is made of, built once and restored to where it was."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from bafogpt.core import settings
from bafogpt.core.errors import BafoError, ConfigError
from bafogpt.data.tokenizer import load as load_tokenizer
from bafogpt.data.vocabulary.files import TOKENIZER
from bafogpt.model import pull
from bafogpt.model.config import fingerprint
from bafogpt.model.formats.folder import ModelFolder
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.store import CheckpointStore
from bafogpt.storage.folders.uri import locate
from bafogpt.storage.tokens import manifest as manifests
from bafogpt.storage.tokens.stream import BlockCache, Samples, TokenStream
from bafogpt.train import batches, float8, memory_check, metrics, network, parallel
from bafogpt.train.batches import Batch
from bafogpt.train.checkpointer import Checkpointer
from bafogpt.train.config import TrainConfig, check_processes
from bafogpt.train.estimates import flops
from bafogpt.train.learner import Learner, build_learner
from bafogpt.train.probes import collective_check
from bafogpt.train.profiler import StepProfiler
from bafogpt.train.state import load_weights
from bafogpt.train.step_logger import StepLogger
from bafogpt.train.trainer_io import TrainerFiles, TrainOrder, checkpoint_name
from bafogpt.train.validation import ValidationPlan, Validator, plan_validation


@dataclass(frozen=True, kw_only=True)
class TrainRun(Learner):
    """The objects of one run in one process."""

    train: Samples
    validator: Validator | None
    micro_batch: int
    """Samples a process pushes through the model at once, set or found."""
    checkpointer: Checkpointer
    log: StepLogger
    profiler: StepProfiler

    def batches(self) -> Generator[list[Batch]]:
        """This process's micro-batches of each step from here to the end."""
        config, fabric = self.config, self.fabric
        return batches.step_batches(
            self.train,
            first=self.state.progress.samples,
            last=config.steps * config.batch_samples,
            batch_samples=config.batch_samples,
            micro_batch=self.micro_batch,
            rank=fabric.global_rank,
            processes=fabric.world_size,
            device=fabric.device,
            depth=config.data.prefetch,
            separate_documents=config.data.separate_documents,
        )


def build_run(order: TrainOrder, trainer_files: TrainerFiles) -> TrainRun:
    """Everything a run is made of, restored to where it was."""
    config, gpu = order.config, order.device == "cuda"
    check_processes(config, parallel.world_size())
    float8.check(config, gpu=gpu)
    bucket = Bucket.open(order.bucket)
    data = bucket.child(config.data.path)
    manifest = manifests.load(data)
    found = network.resolve_network(config, bucket, manifest.vocab_size)
    config, shape = network.resolve_config(config, found, bucket), found.shape
    rows = shape.padded_vocab_size if shape.padded_vocab_size < manifest.vocab_size else None
    train, validation = _samples(data, manifest, config, trainer_files.folder / "cache", rows)
    memory_check.check_length(shape, config)
    memory_check.check_packing(manifest.packing, config)
    if gpu:
        memory_check.check_attention(shape, config)
    micro_batch, sharding = memory_check.choose_micro_batch(shape, config, gpu=gpu)
    fabric = parallel.make_fabric(order, sharding)
    fabric.launch()
    if fabric.world_size > 1:
        parallel.sum_int(0)  # until all are there: who comes late is no broken machine
        with collective_check.deadline(order.collective_timeout_s, trainer_files):
            speed = collective_check.all_reduce(fabric.device)
        fabric.print(f"all-reduce over {fabric.world_size} processes: {speed:.2f} GB/s")
    if gpu and not config.batch.micro_batch_size:
        documents = train.stream.is_packed or config.data.separate_documents
        micro_batch = memory_check.probe_micro_batch(
            shape, config, micro_batch=micro_batch, sharding=sharding, documents=documents
        )
        micro_batch = parallel.min_int(micro_batch)
    identity = {"data": manifest.digest, "sequence_length": config.data.sequence_length}
    if train.bos is not None:
        identity["bos"] = train.bos

    def first_weights(gpt: torch.nn.Module) -> None:
        if path := config.model.checkpoint:
            model = fingerprint(shape, config.model.tied)
            folder = _first_weights(gpt, model, order.bucket, path, trainer_files.folder / "weights", fabric, manifest)
            if folder and config.data.bos is None and not manifest.tokenizer.add_bos:
                _require_no_bos(folder, path, config.data.path)

    resumes = order.resume_step is not None
    learner = build_learner(
        config,
        shape,
        fabric,
        sharding=sharding,
        identity=identity,
        empty=config.model.checkpoint is not None or (resumes and config.adapter is None),
        load_base=first_weights,
    )
    state = learner.state
    if order.resume_step is not None:
        state.load(trainer_files.resume / checkpoint_name(order.resume_step))
    elif config.adapter is None:
        first_weights(state.model)
    log = StepLogger(
        config,
        fabric,
        state.progress,
        curriculum=manifest.splits["train"],
        lines=metrics.MetricsLog(trainer_files.metrics(order.attempt)) if fabric.is_global_zero else None,
        flops_per_token=flops.flops_per_token(shape, config.data.sequence_length, config.adapter),
    )
    return TrainRun(
        **vars(learner),
        train=train,
        validator=Validator(learner, validation, micro_batch, log) if validation else None,
        micro_batch=micro_batch,
        checkpointer=Checkpointer(trainer_files, config.checkpoint),
        log=log,
        profiler=StepProfiler(
            trainer_files.profile,
            steps=config.profile if fabric.is_global_zero else 0,
            attempt=order.attempt,
            done=state.progress.step,
        ),
    )


def _samples(
    data: Bucket, manifest: manifests.TokenManifest, config: TrainConfig, folder: Path, rows: int | None
) -> tuple[Samples, ValidationPlan | None]:
    """The samples to train on and, where they are wanted, those to validate on.

    Raises :class:`ConfigError` where validation is wanted and not one sample of it was held out.
    """
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


def _bos(manifest: manifests.TokenManifest, config: TrainConfig) -> int | None:
    """The id that every sample begins with; None for none, and for packed conversations, whose template has it.

    Raises :class:`ConfigError` where it is wanted and the tokenizer has none.
    """
    tokenizer = manifest.tokenizer
    if manifest.packing is not None or not (tokenizer.add_bos if config.data.bos is None else config.data.bos):
        return None
    if tokenizer.bos_id is None:
        raise ConfigError(f"tokenizer {tokenizer.name} has no <bos>", "--set train.data.bos=null")
    return tokenizer.bos_id


def _require_no_bos(folder: ModelFolder, name: str, data: str) -> None:
    """Raise :class:`ConfigError` where the model's tokenizer begins each text with ``<bos>``: ``data`` does not."""
    if (folder.path / TOKENIZER).is_file() and load_tokenizer(str(folder.path)).add_bos:
        raise ConfigError(
            f"{name} was trained on texts that begin with <bos>, and {data} has none",
            "prepare the data again, or --set train.data.bos=true (false trains without)",
        )


def _first_weights(
    model: torch.nn.Module,
    identity: dict[str, Any],
    url: str,
    path: str,
    into: Path,
    fabric: Fabric,
    manifest: manifests.TokenManifest,
) -> ModelFolder | None:
    """Load the weights of a model folder of the bucket (``models/NAME``), or a run's newest (``runs/NAME``).

    Fetched once a machine, verified; each process reads its own rows. Raises :class:`ConfigError` for a model that is
    not the job's, or whose tokenizer is not that of the data.
    """
    bucket = Bucket.open(url)
    if not bucket.exists(f"{path}/config.json"):
        load_weights(model, _fetch_checkpoint(bucket, path, into, fabric), identity)
        return None
    with fabric.rank_zero_first(local=True):
        folder = pull.fetch(locate(f"{url}/{path}", settings.load()), into, settings.load())
    folder.require_tokenizer(manifest.tokenizer.digest)
    folder.load_into(model)
    return folder


def _fetch_checkpoint(bucket: Bucket, path: str, into: Path, fabric: Fabric) -> Path:
    """The newest complete checkpoint of a run, on this disk; fetched once a machine."""
    with fabric.rank_zero_first(local=True):
        found = CheckpointStore(bucket.child(path).child("checkpoints")).fetch_newest(into)
    if found is None:
        message = f"{bucket.url}/{path} is neither a model folder nor a run with a complete checkpoint"
        raise BafoError(message, f"bafogpt storage ls {path}")
    return found[1]
