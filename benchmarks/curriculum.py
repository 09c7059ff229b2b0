"""``./scripts/bench curriculum``: does the order of the text matter, and does English replay keep the English?

A small Gemma-2 first learns English (the replay text), then isiZulu in one of three ways: in the curriculum's order
with replay mixed in, the same samples shuffled, or the curriculum without replay. Everything is the project's own: the
dataset, the step, the validation. Gemma's tokenizer is cut to the ``--pieces`` used most, so that a CPU can hold the
embedding; bytes stay, so every text is still encoded without loss.

Needs the shared corpus (``BAFOGPT_SHARED``, else ``../shared``).
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bafogpt.core import schema
from bafogpt.data import prepare, tokenizer
from bafogpt.data.curriculum import REPLAY, STAGES
from bafogpt.storage.bucket import Bucket
from bafogpt.train import batches
from bafogpt.train.config import TrainConfig
from bafogpt.train.run import TrainRun, build_run
from bafogpt.train.state import load_weights
from bafogpt.train.step import train_step
from bafogpt.train.trainer_io import TrainerFiles, TrainOrder, checkpoint_name

SHARED = Path(os.environ.get("BAFOGPT_SHARED", Path(__file__).parents[2] / "shared"))
LENGTH, BATCH = 64, 16
MODEL = {"n_layer": 3, "n_embd": 96, "n_head": 3, "n_query_groups": 1, "head_size": 32, "intermediate_size": 256}
ARMS = ("curriculum", "shuffled", "no replay")


def documents(share: float) -> Iterator[dict[str, Any]]:
    """Documents of the corpus, of each stage about ``share``, the same at every call."""
    chance = random.Random(1)
    for path in sorted((SHARED / "data" / "zulu" / "corpus").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                if chance.random() < share * (2 if record["stage"] == REPLAY else 1):  # English is learned from, too
                    yield {key: record[key] for key in ("text", "source", "lang", "stage")}


def cut_tokenizer(texts: list[str], pieces: int, out: Path) -> None:
    """Gemma's tokenizer with its control tokens, its bytes and the ``pieces`` that ``texts`` use most.

    A piece needs the pieces that it is merged from, so those are kept with it, down to single characters.
    """
    source = SHARED / "data" / "gemma_tokenizer" / "tokenizer.json"
    whole, plain = tokenizer.load(str(source)), json.loads(source.read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = plain["model"]["vocab"]
    names = {number: piece for piece, number in vocabulary.items()}
    counts = collections.Counter(int(each) for ids in whole.encode_batch(texts) for each in ids)
    pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in plain["model"]["merges"]]
    parts: dict[str, list[list[str]]] = {}
    for pair in pairs:
        parts.setdefault("".join(pair), []).append(pair)
    kept = {each["content"] for each in plain["added_tokens"] if each["id"] < 8} | {f"<0x{n:02X}>" for n in range(256)}

    def keep(piece: str) -> None:
        if piece not in kept:
            kept.add(piece)
            for part in parts.get(piece, [[]])[0]:
                keep(part)

    for number, _ in counts.most_common(pieces):
        keep(names[number])
    ordered = [piece for piece in vocabulary if piece in kept]
    plain["model"]["vocab"] = {piece: number for number, piece in enumerate(ordered)}
    plain["model"]["merges"] = [pair for pair in pairs if {*pair, "".join(pair)} <= kept]
    added = [each for each in plain["added_tokens"] if each["content"] in kept]
    plain["added_tokens"] = [each | {"id": plain["model"]["vocab"][each["content"]]} for each in added]
    plain["post_processor"] = None
    out.write_text(json.dumps(plain, ensure_ascii=False), encoding="utf-8")


def make_data(folder: Path, share: float, pieces: int) -> None:
    """Three datasets with one tokenizer: English alone, the curriculum with replay, and without."""
    found = list(documents(share))
    cut_tokenizer([each["text"] for each in found], pieces, folder / "tokenizer.json")
    made = tokenizer.load(str(folder / "tokenizer.json"))
    texts, english = folder / "texts.jsonl", folder / "english.jsonl"
    texts.write_text("".join(json.dumps(each) + "\n" for each in found), encoding="utf-8")
    only = [each | {"stage": "web"} for each in found if each["stage"] == REPLAY]
    english.write_text("".join(json.dumps(each) + "\n" for each in only), encoding="utf-8")
    (folder / "bucket").mkdir()
    bucket = Bucket.open(f"file://{folder}/bucket")
    for name, source, replay in (("english", english, 0.0), ("curriculum", texts, 0.25), ("no-replay", texts, 0.0)):
        options = prepare.PrepareOptions(replay_share=replay, validation=0.1)
        report = prepare.prepare([str(source)], tokenizer=made, out=bucket.child(name), options=options)
        print(f"{name}: {report.train_tokens:,} tokens, replay {report.replay_share:.0%}", flush=True)


def start(
    folder: Path, data: str, steps: int, seed: int, work: Path, base: Path | None = None, model: str | None = None
) -> TrainRun:
    """A run on ``data``, from the checkpoint folder ``base``, the bucket's ``model``, or from random weights."""
    values = {
        "tokens": steps * BATCH * LENGTH,
        "data": {"path": data, "sequence_length": LENGTH, "cache_gb": 0},
        "model": {"overrides": MODEL, "checkpoint": model},
        "batch": {"tokens": BATCH * LENGTH, "micro_batch_size": BATCH},
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {"warmup_steps": 20},
        "validation": {"every": steps, "samples": None},
        "precision": "32-true",
        "activation_checkpointing": "none",
        "seed": seed,
        "log_every": 50,
    }
    trainer_files = TrainerFiles(work)
    trainer_files.checkpoints.mkdir(parents=True)
    config = schema.build(TrainConfig, values, where="experiment")
    run = build_run(TrainOrder(bucket=f"file://{folder}/bucket", config=config), trainer_files)
    if base is not None:
        load_weights(run.state.model, base, run.state.fingerprint["model"])
    return run


def steps(run: TrainRun, order: Sequence[int] | None = None) -> Iterator[int]:
    """Train to the end on the samples in their order or another; yields the number of each step that is done."""
    order = order or range(run.config.steps * BATCH)
    for step in range(run.config.steps):
        rows = [
            batches.sample_row(run.train, index, run.train[index]) for index in order[step * BATCH : (step + 1) * BATCH]
        ]
        train_step(run, [batches.make_batch(rows, run.fabric.device)])
        yield step + 1


def validated(run: TrainRun, work: Path) -> dict[str, Any]:
    """What a validation says now, as the metrics have it."""
    assert run.validator is not None
    run.validator.validate()
    line: dict[str, Any] = json.loads(TrainerFiles(work).metrics(1).read_text(encoding="utf-8").splitlines()[-1])
    return line


def bits(line: dict[str, Any]) -> dict[str, float]:
    """Bits a byte by stage, and of all."""
    return {stage: each["bpb"] for stage, each in line["validation_stages"].items()} | {"all": line["validation_bpb"]}


def steps_of(folder: Path, data: str, only: int) -> int:
    """Those that read a dataset once; at most ``only``, unless that is 0."""
    tokens = json.loads((folder / "bucket" / data / "manifest.json").read_text())["splits"]["train"]["tokens"]
    return min(only or 10**9, int(tokens - 1) // LENGTH // BATCH)


def english(folder: Path, seed: int, only: int) -> Path:
    """The checkpoint folder of a model that has read the English twice."""
    work = folder / f"english-{seed}"
    run = start(folder, "english", 2 * steps_of(folder, "english", only), seed, work)
    for _ in steps(run):
        pass
    run.checkpointer.save(run.state)
    run.checkpointer.wait()
    return TrainerFiles(work).checkpoints / checkpoint_name(run.config.steps)


def experiment(folder: Path, seed: int, only: int) -> list[dict[str, Any]]:
    """One seed: English, then each arm from there. ``only`` bounds the steps, for a trial; 0 is whole datasets."""
    base, results = english(folder, seed, only), []
    for arm in ARMS:
        data, work = "no-replay" if arm == "no replay" else "curriculum", folder / f"{arm}-{seed}"
        run, began = start(folder, data, steps_of(folder, data, only), seed, work, base), time.monotonic()
        if not results:
            results.append({"arm": "English alone", "seed": seed, **bits(validated(run, work))})
        order = list(range(run.config.steps * BATCH))
        if arm == "shuffled":
            random.Random(seed).shuffle(order)
        for _ in steps(run, order):
            pass
        found = bits(validated(run, work))
        results.append({"arm": arm, "seed": seed, **found})
        print(f"seed {seed} {arm}: {found['all']:.3f} bits/byte, {run.config.steps} steps, "
              f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Mean and spread over seeds, a row a stage, as Markdown."""
    arms = ["English alone", *ARMS]
    stages = [stage for stage in (*STAGES, REPLAY, "all") if stage in results[0]]
    rows = ["| bits a byte | " + " | ".join(arms) + " |", "|---|" + "---:|" * len(arms)]
    for stage in stages:
        cells = []
        for arm in arms:
            values = [each[stage] for each in results if each["arm"] == arm]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        rows.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Bits a byte by stage, a bar an arm, a dot a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stages = [stage for stage in (*STAGES, REPLAY) if stage in results[0]]
    figure, axes = pyplot.subplots(figsize=(9, 4))
    for place, arm in enumerate(ARMS):
        each = [[one[stage] for one in results if one["arm"] == arm] for stage in stages]
        where = [index + (place - 1) * 0.26 for index in range(len(stages))]
        axes.bar(where, [statistics.mean(values) for values in each], 0.24, label=arm)
        for x, values in zip(where, each, strict=True):
            axes.plot([x] * len(values), values, "k.", markersize=3)
    axes.set_xticks(range(len(stages)), ["English (replay)" if stage == REPLAY else stage for stage in stages])
    axes.tick_params(axis="x", rotation=25)
    axes.set_ylabel("bits a byte, held-out text")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run, print the table, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--share", type=float, default=0.1, help="of the corpus")
    parser.add_argument("--pieces", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=0, help="at most, for a trial")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bafogpt-curriculum-") as folder:
        make_data(Path(folder), options.share, options.pieces)
        results: list[dict[str, Any]] = []
        for seed in options.seeds.split(","):
            results += experiment(Path(folder), int(seed), options.steps)
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    if options.figure:
        draw(results, options.figure)


if __name__ == "__main__":
    main()
