"""The network that a job trains, and its first weights.

A network is new, by its name, or that of ``model.checkpoint``: a model folder's ``config.json``, or a run's newest
checkpoint, defines it. ``model.name``, ``model.overrides`` and ``model.tie_embeddings`` must then agree with it if set.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from litgpt.config import Config

from bafogpt.core import schema, settings
from bafogpt.core.errors import BafoError, ConfigError, CorruptError
from bafogpt.data.tokenizer import load as load_tokenizer
from bafogpt.data.vocabulary.files import LINEAGE, TOKENIZER
from bafogpt.folders.uri import locate
from bafogpt.model import pull
from bafogpt.model.config import fingerprint, gpt_config, require_fields, vocab_fits
from bafogpt.model.formats import hf_config
from bafogpt.model.formats.checkpoint import META, config_of
from bafogpt.model.formats.families import family_of
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.checkpoints.store import CheckpointStore
from bafogpt.storage.tokens.manifest import TokenizerInfo
from bafogpt.train.config import ModelConfig, TrainConfig
from bafogpt.train.state import load_weights

_VOCABULARY = ("vocab_size", "padded_vocab_size")
_NOT_BY_NAME = (*_VOCABULARY, "name", "hf_config", "padding_multiple", "block_size", "norm_eps")
"""Fields in which a model folder may differ from the litgpt configuration of ``model.name``."""


@dataclass(frozen=True)
class NetworkSpec:
    """A network's sizes."""

    shape: Config
    tied: bool
    """Whether the output head is the embedding matrix."""


def resolve_network(config: TrainConfig, bucket: Bucket, vocab_size: int) -> NetworkSpec:
    """The network of a job whose dataset has ``vocab_size`` ids.

    Raises :class:`ConfigError` where the job contradicts its ``model.checkpoint``, or that has too few or far too many
    rows for the dataset's ids, and what :func:`gpt_config` raises.
    """
    model = config.model
    found = _of_checkpoint(bucket, model.checkpoint) if model.checkpoint else None
    if found is None:
        return NetworkSpec(gpt_config(model.network, model.overrides, vocab_size), model.tied)
    network, where = found
    _require_agreement(model, network, where)
    _require_rows(network.shape.padded_vocab_size, vocab_size, bucket, str(model.checkpoint))
    shape = dataclasses.replace(network.shape, vocab_size=min(vocab_size, network.shape.padded_vocab_size))
    return NetworkSpec(shape, network.tied if model.tie_embeddings is None else model.tie_embeddings)


def resolve_config(config: TrainConfig, network: NetworkSpec, bucket: Bucket) -> TrainConfig:
    """The job with ``model.tie_embeddings`` and ``optimizer.first_new_row`` set from the network.

    Raises :class:`ConfigError` where ``new_rows_factor`` is set and it is unknown which rows are new.
    """
    model = replace(config.model, tie_embeddings=network.tied)
    optimizer = config.optimizer
    if optimizer.new_rows_factor != 1 and not optimizer.first_new_row:
        optimizer = replace(optimizer, first_new_row=_first_new_row(config, bucket))
    return replace(config, model=model, optimizer=optimizer)


def _of_checkpoint(bucket: Bucket, path: str) -> tuple[NetworkSpec, str] | None:
    """The network of a model folder or of a run's newest checkpoint, and the file that defines it.

    None if there is neither, and for a run's network of a family without a ``config.json``.
    """
    if bucket.exists(f"{path}/{hf_config.CONFIG}"):
        where = f"{bucket.url}/{path}/{hf_config.CONFIG}"
        content = schema.parse_json(bucket.get(f"{path}/{hf_config.CONFIG}"), where)
        return NetworkSpec(hf_config.to_litgpt(content, where), hf_config.tied(content, where)), where
    checkpoints = bucket.child(path).child("checkpoints")
    complete = CheckpointStore(checkpoints).complete()
    objects = {file.name: file.object for file in complete[-1].files} if complete else {}
    if META not in objects:
        return None
    where = f"{path}/checkpoints/{complete[-1].name}"
    try:
        saved: dict[str, Any] = dict(json.loads(checkpoints.get(objects[META]))["fingerprint"]["model"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{where} is not a checkpoint: {error}", f"bafogpt storage verify {path}") from None
    shape = config_of(saved, where)
    return None if family_of(shape) is None else (NetworkSpec(shape, bool(saved.get("tie_embeddings", True))), where)


def _require_agreement(model: ModelConfig, network: NetworkSpec, where: str) -> None:
    """Raise :class:`ConfigError` naming the first field in which the job contradicts ``network``."""
    require_fields(model.overrides)
    asked = {key: (f"model.overrides.{key} is", value) for key, value in model.overrides.items()}
    if model.name is not None:
        named = gpt_config(model.name, model.overrides, network.shape.vocab_size)
        for field in dataclasses.fields(Config):
            if field.name not in _NOT_BY_NAME:
                value = getattr(named, field.name)
                asked.setdefault(field.name, (f"model.name {model.name} has {field.name}", value))
    hint = "leave model.name and model.overrides out: the network is that of the first weights"
    for key, (what, value) in asked.items():
        found = getattr(network.shape, key)
        if key not in _VOCABULARY and value != found:
            raise ConfigError(f"{what} {value!r}, and {where} has {found!r}", hint)
    if model.tie_embeddings and not network.tied:
        raise ConfigError(
            f"model.tie_embeddings is true, and {where} has an output head of its own",
            "--set train.model.tie_embeddings=false, or leave it out",
        )


def _require_rows(rows: int, ids: int, bucket: Bucket, path: str) -> None:
    """Raise :class:`ConfigError` where a folder's rows do not match the dataset's tokenizer.

    A folder with a tokenizer is compared by that when its weights are loaded; a run was trained with one.
    """
    known = bucket.exists(f"{path}/{TOKENIZER}") or not bucket.exists(f"{path}/{hf_config.CONFIG}")
    if not vocab_fits(rows, ids, same_tokenizer=known):
        raise ConfigError(
            f"{path} has {rows:,} rows in its vocabulary, the dataset's tokenizer {ids:,} ids",
            "prepare the data with the model's own tokenizer, or expand the model: bafogpt model expand",
        )


def _first_new_row(config: TrainConfig, bucket: Bucket) -> int:
    """The size of the vocabulary before it was extended, from the lineage in the model folder."""
    where = f"{config.model.checkpoint}/{LINEAGE}"
    if config.model.checkpoint and bucket.exists(where):
        try:
            return int(json.loads(bucket.get(where))["base"]["size"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(f"{bucket.url}/{where}: not a lineage ({error})", "expand the model again") from None
    raise ConfigError(
        f"optimizer.new_rows_factor is {config.optimizer.new_rows_factor:g}, and no {LINEAGE} says which rows are new",
        "--set train.optimizer.first_new_row=ROW, the size of the base model's own vocabulary",
    )


def load_first_weights(
    model: torch.nn.Module,
    *,
    config: TrainConfig,
    shape: Config,
    fabric: Fabric,
    bucket: Bucket,
    tokenizer: TokenizerInfo,
    into: Path,
) -> None:
    """Load the weights of ``config.model.checkpoint``, if it is set: a model folder, or a run's newest checkpoint.

    They are fetched once a machine, verified; each process reads its own rows. Raises :class:`ConfigError` where the
    model is not the job's, or its tokenizer not that of the data.
    """
    path = config.model.checkpoint
    if path is None:
        return
    if not bucket.exists(f"{path}/{hf_config.CONFIG}"):
        load_weights(model, _fetch_checkpoint(bucket, path, into, fabric), fingerprint(shape, config.model.tied))
        return
    with fabric.rank_zero_first(local=True):
        folder = pull.fetch(locate(f"{bucket.url}/{path}", settings.load()), into, settings.load())
    folder.require_tokenizer(tokenizer.digest)
    folder.load_into(model)
    expects_bos = (folder.path / TOKENIZER).is_file() and load_tokenizer(str(folder.path)).add_bos
    if config.data.bos is None and not tokenizer.add_bos and expects_bos:
        raise ConfigError(
            f"{path} was trained on texts that begin with <bos>, and {config.data.path} has none",
            "prepare the data again, or --set train.data.bos=true (false trains without)",
        )


def _fetch_checkpoint(bucket: Bucket, path: str, into: Path, fabric: Fabric) -> Path:
    """The newest complete checkpoint of a run, on this disk; fetched once a machine."""
    with fabric.rank_zero_first(local=True):
        found = CheckpointStore(bucket.child(path).child("checkpoints")).fetch_newest(into)
    if found is None:
        message = f"{bucket.url}/{path} is neither a model folder nor a run with a complete checkpoint"
        raise BafoError(message, f"bafogpt storage ls {path}")
    return found[1]
