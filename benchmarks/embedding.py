"""``./scripts/bench embedding``: where should the rows of a tokenizer's new pieces begin?

A small Gemma-2 first learns English (the replay text) with Gemma's tokenizer, cut to the pieces used most. The
tokenizer is continued for isiZulu (``tokenizer extend``) and the model expanded for it (``model expand``), with the
mean of all rows or of each piece's own base tokens; both go on with the same isiZulu and some replay. The
model that is not expanded goes on with the same text in its own tokens. Bits a byte on held-out text compare them all.

Needs the shared corpus (``BAFOGPT_SHARED``, else ``../shared``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from curriculum import cut_tokenizer, documents, english, start, steps, steps_of, validated

from bafogpt.data import prepare, tokenizer
from bafogpt.data.curriculum import REPLAY
from bafogpt.data.vocabulary import extend as extending
from bafogpt.model import export, resize_embeddings
from bafogpt.model.formats.checkpoint import CheckpointFolder
from bafogpt.storage.bucket import Bucket
from bafogpt.train.run import TrainRun

ARMS = ("mean", "subtokens", "not expanded")
COLOURS = {"mean": "tab:blue", "subtokens": "tab:orange", "not expanded": "tab:gray"}


def make_data(folder: Path, share: float, kept: int, pieces: int) -> None:
    """English alone and isiZulu with replay in the cut tokenizer; the latter in the continued one, too."""
    found = list(documents(share))
    base = folder / "base"
    base.mkdir()
    cut_tokenizer([each["text"] for each in found], kept, base / "tokenizer.json")
    texts, english = folder / "texts.jsonl", folder / "english.jsonl"
    texts.write_text("".join(json.dumps(each) + "\n" for each in found), encoding="utf-8")
    only = [each | {"stage": "web"} for each in found if each["stage"] == REPLAY]
    english.write_text("".join(json.dumps(each) + "\n" for each in only), encoding="utf-8")
    options = extending.ExtendOptions(pieces=pieces)
    extending.extend(str(base), [str(texts)], [str(texts)], folder / "continued", options=options)
    (folder / "bucket").mkdir()
    bucket = Bucket.open(f"file://{folder}/bucket")
    for name, source, replay, made in (
        ("english", english, 0.0, base),
        ("zulu-base", texts, 0.1, base),
        ("zulu", texts, 0.1, folder / "continued"),
    ):
        made_with = tokenizer.load(str(made))
        report = prepare.prepare(
            [str(source)],
            tokenizer=made_with,
            out=bucket.child(name),
            options=prepare.PrepareOptions(replay_share=replay, validation=0.1),
        )
        print(f"{name}: {made_with.vocab_size:,} pieces, {report.train_tokens:,} tokens", flush=True)


def followed(run: TrainRun, work: Path, every: int) -> list[dict[str, float]]:
    """Train to the end; bits a byte before the first step, each ``every`` and after the last, by share of the text."""

    def look(done: int) -> dict[str, float]:
        by = {name: each["bpb"] for name, each in validated(run, work)["validation_languages"].items()}
        return {"step": done, "seen": done / run.config.steps, "zul": by["zul"], "eng": by["eng"]}

    due = (done for done in steps(run) if done % every == 0 or done == run.config.steps)
    return [look(0), *map(look, due)]


def experiment(folder: Path, seed: int, only: int, looks: int) -> list[dict[str, Any]]:
    """One seed: English, then each arm from there. ``only`` bounds the steps, for a trial; 0 is whole datasets."""
    base, results = folder / f"model-{seed}", []
    checkpoint = CheckpointFolder.open(english(folder, seed, only))
    export.write(export.from_checkpoint(checkpoint, [folder / "base" / "tokenizer.json"]), base, "hf")
    for arm in ARMS:
        name, began = f"models/{arm.replace(' ', '-')}-{seed}", time.monotonic()
        place = folder / "bucket" / name
        place.parent.mkdir(exist_ok=True)
        if arm == "not expanded":
            export.write(export.open_folder(base), place, "hf")
        else:
            resize_embeddings.expand(base, folder / "continued", place, init="mean" if arm == "mean" else "subtokens")
        data = "zulu-base" if arm == "not expanded" else "zulu"
        work, count = folder / f"{arm}-{seed}", steps_of(folder, data, only)
        run = start(folder, data, count, seed, work, model=name)
        curve = followed(run, work, max(1, count // looks))
        results += [{"arm": arm, "seed": seed, **point} for point in curve]
        print(f"seed {seed} {arm}: isiZulu {curve[0]['zul']:.3f} -> {curve[-1]['zul']:.3f} bits/byte, English "
              f"{curve[0]['eng']:.3f} -> {curve[-1]['eng']:.3f}, {count} steps, {time.monotonic() - began:.0f} s",
              flush=True)  # fmt: skip
    return results


def table(results: list[dict[str, Any]], shown: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 1.0)) -> str:
    """Mean and spread over seeds at some shares of the text, as Markdown."""
    rows = ["| bits a byte | " + " | ".join(f"{share:.0%} of the text" for share in shown) + " |"]
    rows.append("|---|" + "---:|" * len(shown))
    for language, called in (("zul", "isiZulu"), ("eng", "English")):
        for arm in ARMS:
            cells = []
            for share in shown:
                curves: dict[int, list[dict[str, Any]]] = {}
                for each in results:
                    if each["arm"] == arm:
                        curves.setdefault(each["seed"], []).append(each)
                values = [min(curve, key=lambda p: abs(p["seen"] - share))[language] for curve in curves.values()]
                spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.3f}{spread}")
            rows.append(f"| {called}, {arm} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Bits a byte by share of the text, a line a seed; isiZulu left, English right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, pair = pyplot.subplots(1, 2, figsize=(10, 4))
    for axes, language, called in zip(pair, ("zul", "eng"), ("isiZulu", "English (replay)"), strict=True):
        for arm in ARMS:
            for number, seed in enumerate(sorted({each["seed"] for each in results})):
                curve = [each for each in results if each["arm"] == arm and each["seed"] == seed]
                axes.plot(
                    [100 * each["seen"] for each in curve],
                    [each[language] for each in curve],
                    color=COLOURS[arm],
                    linewidth=1,
                    label=arm if number == 0 else None,
                )
        axes.set_title(called)
        axes.set_xlabel("% of the text seen")
        axes.spines[["top", "right"]].set_visible(False)
    pair[0].set_ylabel("bits a byte, held-out text")
    pair[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run, print the table, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--share", type=float, default=0.1, help="of the corpus")
    parser.add_argument("--kept", type=int, default=2000, help="pieces of Gemma's tokenizer")
    parser.add_argument("--pieces", type=int, default=2000, help="new ones")
    parser.add_argument("--looks", type=int, default=20, help="validations on the way")
    parser.add_argument("--steps", type=int, default=0, help="at most, for a trial")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bafogpt-embedding-") as folder:
        make_data(Path(folder), options.share, options.kept, options.pieces)
        results: list[dict[str, Any]] = []
        for seed in options.seeds.split(","):
            results += experiment(Path(folder), int(seed), options.steps, options.looks)
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    if options.figure:
        draw(results, options.figure)


if __name__ == "__main__":
    main()
