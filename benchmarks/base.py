"""``./scripts/bench base --model DIR``: continue a real pretrained base in isiZulu, one choice changed at a time.

DIR is a Hugging Face folder (Gemma-2 or Gemma-3, its tokenizer in it; ``BAFOGPT_REAL_BASE`` names one, too).
Everything is the project's own: the continued tokenizer, the expanded rows, the dataset, the trainer's step. Each arm
starts at the same weights, reads the same documents once, and is measured before and after in bits a byte on documents
that it never reads: NTREX in isiZulu and in English, and isiZulu of the corpus. Seeds choose the documents. On a CPU a
small part of the corpus takes minutes an arm; with ``--device cuda --text-kb 0`` an arm reads all of it.

Needs the shared corpus and evaluation sets (``BAFOGPT_SHARED``, else ``../shared``).
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bafogpt.core import schema
from bafogpt.data import prepare, tokenizer
from bafogpt.data.curriculum import REPLAY
from bafogpt.data.tokenizer import Tokenizer
from bafogpt.data.vocabulary.extend import ExtendOptions, extend
from bafogpt.model import resize_embeddings
from bafogpt.model.loss import IGNORE
from bafogpt.storage.bucket import Bucket
from bafogpt.train import batches
from bafogpt.train.config import TrainConfig
from bafogpt.train.run import TrainRun, build_run
from bafogpt.train.step import train_step
from bafogpt.train.trainer_io import TrainerFiles, TrainOrder

SHARED = Path(os.environ.get("BAFOGPT_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "zulu"
SETS = ("isiZulu", "English", "isiZulu, corpus")
"""What is measured: NTREX's two sides, and documents of the corpus."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One choice of each kind; the defaults are the reference."""

    rows: str = "subtokens"
    """``subtokens``, ``mean``, or ``none`` for the base's own tokenizer."""
    bos: bool = True
    replay: float = 0.05
    order: str = "shuffled"
    rate: float = 1.0
    """Times the learning rate."""


ARMS = {
    "reference": Arm(),
    "mean rows": Arm(rows="mean"),
    "not expanded": Arm(rows="none"),
    "no <bos>": Arm(bos=False),
    "no replay": Arm(replay=0.0),
    "replay 15 %": Arm(replay=0.15),
    "curriculum": Arm(order="curriculum"),
    "curriculum then shuffled": Arm(order="half"),
    "rate × ¼": Arm(rate=0.25),
    "rate × 4": Arm(rate=4.0),
}


@dataclass(frozen=True)
class Texts:
    """Documents to train on, and to measure with."""

    train: list[dict[str, Any]]
    held_out: dict[str, list[str]]
    """By the names of :data:`SETS`."""


def records(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def read_texts(options: argparse.Namespace, seed: int) -> Texts:
    """Training documents chosen by ``seed``, ``--text-kb`` of them; the same held-out ones for every seed."""
    size, count = options.document_bytes, options.documents
    ntrex: dict[str, dict[str, str]] = {"eng": {}, "zul": {}}
    for each in records(SHARED / "eval" / "ntrex_eng_zul.jsonl.gz"):
        for language, documents in ntrex.items():
            documents[each["doc"]] = f"{documents.get(each['doc'], '')} {each[language]}".strip()
    corpus = [each for path in sorted((SHARED / "corpus").glob("*.jsonl.gz")) for each in records(path)]
    random.Random(0).shuffle(corpus)
    zulu = [each for each in corpus if each["stage"] != REPLAY and len(each["text"]) >= size]
    held = zulu[:count]
    texts = {id(each) for each in held}
    chosen = sorted(ntrex["eng"])[:count]
    held_out = {
        "isiZulu": [clipped(ntrex["zul"][each], size) for each in chosen],
        "English": [clipped(ntrex["eng"][each], size) for each in chosen],
        "isiZulu, corpus": [clipped(each["text"], size) for each in held],
    }
    rest = [each for each in corpus if id(each) not in texts]
    random.Random(seed).shuffle(rest)
    if options.text_kb:
        rest = list(bounded(rest, options.text_kb * 1000, cut=2 * size))
    return Texts(rest, held_out)


def bounded(documents: Sequence[dict[str, Any]], most: int, cut: int) -> Iterator[dict[str, Any]]:
    """The first ``most`` bytes of isiZulu and a third as many of English, each document's first ``cut`` bytes."""
    left = {True: most // 3, False: most}
    for each in documents:
        english, text = each["stage"] == REPLAY, clipped(each["text"], cut)
        if left[english] > 0:
            left[english] -= len(text.encode())
            yield {**each, "text": text}


def clipped(text: str, size: int) -> str:
    """The first ``size`` bytes of a text, to the last whole word."""
    if len(text.encode()) <= size:
        return text
    return text.encode()[:size].decode(errors="ignore").rsplit(" ", 1)[0]


@torch.no_grad()
def nats(network: Any, cutter: Tokenizer, texts: Sequence[str], device: str, length: int) -> np.ndarray:
    """Nats of each text, [n] float64: its tokens in windows of ``length``, each after a ``<bos>``."""
    found = np.zeros(len(texts))
    assert cutter.bos_id is not None
    for number, ids in enumerate(cutter.encode_batch(list(texts))):
        for start in range(0, len(ids), length):
            window = torch.tensor([[cutter.bos_id, *ids[start : start + length].tolist()]], device=device)
            found[number] += float(network(window[:, :-1], window[:, 1:]))
    return found


def measure(network: Any, cutter: Tokenizer, texts: Texts, device: str, length: int) -> dict[str, np.ndarray]:
    """Bits a byte of each held-out document, [n], by set."""
    was = network.training
    network.eval()
    found = {}
    for name, documents in texts.held_out.items():
        sizes = np.array([len(each.encode()) for each in documents])
        found[name] = nats(network, cutter, documents, device, length) / math.log(2) / sizes
    network.train(was)
    return found


class Place:
    """The folder of one seed: tokenizers, models and datasets, each made when it is first wanted."""

    def __init__(self, folder: Path, options: argparse.Namespace, seed: int) -> None:
        self.folder, self.options, self.seed = folder, options, seed
        self.texts = read_texts(options, seed)
        self.before: dict[str, dict[str, np.ndarray]] = {}
        """What is measured before training, by the kind of rows."""
        (folder / "bucket" / "models").mkdir(parents=True)
        self.bucket = Bucket.open(f"file://{folder}/bucket")
        for name, english in (("zulu", False), ("all", None)):
            kept = [each for each in self.texts.train if english is None or (each["stage"] == REPLAY) is english]
            lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in kept)
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")

    @functools.cached_property
    def continued(self) -> Path:
        """The base's tokenizer with new pieces, learned from the whole training side of the corpus."""
        out, held = self.folder / "tokenizer", {text for texts in self.texts.held_out.values() for text in texts}
        source, english = self.folder / "pieces.jsonl", self.folder / "protected.jsonl"
        for path, replay in ((source, False), (english, True)):
            with path.open("w", encoding="utf-8") as file:
                for corpus in sorted((SHARED / "corpus").glob("*.jsonl.gz")):
                    for each in records(corpus):
                        seen = clipped(each["text"], self.options.document_bytes) in held
                        if not seen and (each["stage"] == REPLAY) is replay:
                            file.write(json.dumps(each, ensure_ascii=False) + "\n")
        wish = ExtendOptions(pieces=self.options.pieces)
        extend(str(self.options.model), [str(source)], [str(english)], out, options=wish)
        return out

    def model(self, rows: str) -> str:
        """The bucket's name of the base, expanded or not."""
        name = f"models/{rows}"
        out = self.folder / "bucket" / name
        if not out.exists():
            if rows == "none":
                out.symlink_to(self.options.model.resolve())
            else:
                resize_embeddings.expand(self.options.model, self.continued, out, init=rows)  # type: ignore[arg-type]
        return name

    def cutter(self, rows: str) -> Tokenizer:
        return tokenizer.load(str(self.options.model if rows == "none" else self.continued))

    def data(self, arm: Arm) -> str:
        """The bucket's name of the arm's dataset."""
        name = f"data/{'base' if arm.rows == 'none' else 'continued'}-{arm.replay}-{arm.bos}"
        out = self.bucket.child(name)
        if not out.exists("manifest.json"):
            wish = prepare.PrepareOptions(replay_share=arm.replay, validation=0, bos=arm.bos)
            prepare.prepare([str(self.folder / "all.jsonl")], tokenizer=self.cutter(arm.rows), out=out, options=wish)
        return name

    def order(self, arm: Arm, count: int) -> list[int]:
        """The samples in the order in which the arm meets them."""
        whole = list(range(count))
        later = whole[0 if arm.order == "shuffled" else count // 2 if arm.order == "half" else count :]
        random.Random(self.seed).shuffle(later)
        return whole[: count - len(later)] + later

    def run(self, arm: Arm, name: str) -> dict[str, Any]:
        """Train the arm, and measure it before and after."""
        options, began = self.options, time.monotonic()
        run = self._start(arm, name)
        count = run.config.steps * options.batch
        order = self.order(arm, count)
        cutter, network = self.cutter(arm.rows), run.state.model
        if arm.rows not in self.before:
            self.before[arm.rows] = measure(network, cutter, self.texts, options.device, options.length)
        before = self.before[arm.rows]
        first: dict[str, float] = {}
        trained = time.monotonic()
        for step in range(run.config.steps):
            indices = order[step * options.batch : (step + 1) * options.batch]
            rows = [batches.sample_row(run.train, index, run.train[index]) for index in indices]
            micros = [rows[at : at + options.micro] for at in range(0, len(rows), options.micro)]
            told = {} if first else {"measured": self._loss(run, rows)}
            found = train_step(run, [batches.make_batch(micro, run.fabric.device) for micro in micros])
            first = first or {**told, "loss": float(found.loss), "norm": float(found.norm)}
        spent = time.monotonic() - trained
        after = measure(network, cutter, self.texts, options.device, options.length)
        tokens = run.config.steps * options.batch * options.length
        result = {
            "arm": name,
            "seed": self.seed,
            "tokens": tokens,
            "tokens_per_s": tokens / spent,
            "first": first,
            "before": {name: values.tolist() for name, values in before.items()},
            "after": {name: values.tolist() for name, values in after.items()},
        }
        print(f"{summary(result)}, {time.monotonic() - began:.0f} s", flush=True)
        return result

    @torch.no_grad()
    def _loss(self, run: TrainRun, rows: Sequence[batches.SampleRow]) -> float:
        """Nats a token of a step's samples by themselves, one after the other, before anything is trained."""
        each = [batches.make_batch([row], run.fabric.device) for row in rows]
        total = sum(float(run.state.model(one.ids, one.targets)) for one in each)
        return total / sum(int((one.targets != IGNORE).sum()) for one in each)

    def _start(self, arm: Arm, name: str) -> TrainRun:
        options, data = self.options, self.data(arm)
        tokens = json.loads((self.folder / "bucket" / data / "manifest.json").read_text())["splits"]["train"]["tokens"]
        steps = max(1, (tokens - 1) // options.length // options.batch)
        values = {
            "tokens": steps * options.batch * options.length,
            "data": {"path": data, "sequence_length": options.length, "cache_gb": 0, "bos": arm.bos},
            "model": {"checkpoint": self.model(arm.rows)},
            "batch": {"tokens": options.batch * options.length, "micro_batch_size": options.micro},
            "optimizer": {"learning_rate": options.rate * arm.rate},
            "schedule": {"warmup_steps": min(steps // 2, max(2, steps // 10))},
            "validation": {"every": 0},
            "precision": options.precision,
            "activation_checkpointing": options.recompute,
            "seed": self.seed,
        }
        trainer_files = TrainerFiles(self.folder / f"run-{name}")
        trainer_files.checkpoints.mkdir(parents=True)
        config = schema.build(TrainConfig, values, where="bench base")
        order = TrainOrder(bucket=f"file://{self.folder}/bucket", config=config, device=options.device)
        return build_run(order, trainer_files)


def summary(result: dict[str, Any]) -> str:
    means = ((name, np.mean(result["before"][name]), np.mean(result["after"][name])) for name in SETS)
    moved = ", ".join(f"{name} {before:.3f} → {after:.3f}" for name, before, after in means)
    first = result["first"]
    return (
        f"seed {result['seed']} {result['arm']}: {moved} bits/byte; {result['tokens']:,} tokens at "
        f"{result['tokens_per_s']:.0f}/s; first step: loss {first['loss']:.4f}, measured {first['measured']:.4f}, "
        f"gradient {first['norm']:.1f}"
    )


def p_value(changes: np.ndarray, turns: int = 10_000) -> float:
    """Of a mean that is not below 0 by chance: one-sided, the signs of ``changes`` [n] flipped at random."""
    chance = np.random.default_rng(1)
    flipped = (chance.choice([-1.0, 1.0], (turns, len(changes))) * changes).mean(axis=1)
    return float((1 + (flipped <= changes.mean()).sum()) / (1 + turns))


def table(results: Sequence[dict[str, Any]]) -> str:
    """Means over documents, and mean and spread over seeds, a row an arm; p over documents, of better than before."""
    head = ["arm", *(f"{name}: before | after" for name in SETS), "isiZulu better, p", "tokens"]
    rows = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (2 * len(SETS) + 2)]
    for arm in dict.fromkeys(each["arm"] for each in results):
        mine = [each for each in results if each["arm"] == arm]
        cells = []
        for name in SETS:
            for when in ("before", "after"):
                values = [float(np.mean(each[when][name])) for each in mine]
                spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 and when == "after" else ""
                cells.append(f"{statistics.mean(values):.3f}{spread}")
        changes = np.mean([np.array(each["after"][SETS[0]]) - each["before"][SETS[0]] for each in mine], axis=0)
        tokens = statistics.mean(each["tokens"] for each in mine)
        rows.append(f"| {arm} | {' | '.join(cells)} | {p_value(changes):.4f} | {tokens:,.0f} |")
    return "\n".join(rows)


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Bits a byte before (hollow) and after (filled), a panel a set, a row an arm, a dot a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = list(dict.fromkeys(each["arm"] for each in results))
    figure, panels = pyplot.subplots(1, len(SETS), figsize=(11, 0.6 + 0.45 * len(arms)), sharey=True)
    for axes, name in zip(panels, SETS, strict=True):
        for each in results:
            row = arms.index(each["arm"])
            before, after = (float(np.mean(each[when][name])) for when in ("before", "after"))
            axes.plot([before, after], [row, row], color="0.8", linewidth=1, zorder=1)
            axes.plot(before, row, "o", color="black", fillstyle="none", markersize=5)
            axes.plot(after, row, "o", color="tab:blue", markersize=4)
        axes.set_title(name)
        axes.set_xlabel("bits a byte")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(arms)), arms)
    panels[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def parser() -> argparse.ArgumentParser:
    """The options, with what a CPU does in some minutes an arm as defaults."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    base = os.environ.get("BAFOGPT_REAL_BASE")
    made.add_argument("--model", type=Path, default=base and Path(base), required=base is None)
    made.add_argument(
        "--arms", default="reference,mean rows,not expanded,no <bos>", help=f"of: {', '.join(ARMS)}".replace("%", "%%")
    )
    made.add_argument("--seeds", default="1,2,3")
    made.add_argument("--pieces", type=int, default=4032, help="new ones")
    made.add_argument("--text-kb", type=int, default=20, help="of isiZulu, a third as much of English; 0 for all")
    made.add_argument("--documents", type=int, default=24, help="held out of each set")
    made.add_argument("--document-bytes", type=int, default=400, help="of each that is held out")
    made.add_argument("--length", type=int, default=256, help="tokens a sample")
    made.add_argument("--batch", type=int, default=2, help="samples a step")
    made.add_argument("--micro", type=int, default=2, help="samples at once")
    made.add_argument("--rate", type=float, default=5e-5)
    made.add_argument("--precision", default="bf16-mixed")
    made.add_argument("--recompute", default="none", help="train.activation_checkpointing")
    made.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    made.add_argument("--threads", type=int, default=0, help="of a CPU; 0 for all")
    made.add_argument("--json", type=Path, help="results so far, written after each arm")
    made.add_argument("--figure", type=Path)
    made.add_argument("--read", type=Path, nargs="*", help="files that --json wrote: show them, and run nothing")
    return made


def main() -> None:
    """Run each arm with each seed, print the table, and draw."""
    options = parser().parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    results: list[dict[str, Any]] = [each for file in options.read or () for each in json.loads(file.read_text())]
    for seed in () if options.read else map(int, options.seeds.split(",")):
        with tempfile.TemporaryDirectory(prefix="bafogpt-base-") as folder:
            place = Place(Path(folder), options, seed)
            for name in options.arms.split(","):
                results.append(place.run(replace(ARMS[name]), name))
                if options.json:
                    options.json.write_text(json.dumps(results), encoding="utf-8")
    print(table(results))
    if options.figure:
        draw(results, options.figure)


if __name__ == "__main__":
    main()
