"""``./scripts/bench tokenizer``: what ``tokenizer extend`` costs and brings, and what encoding costs then.

    --only quality   tokens a word on text that was not learned from, by number of pieces, protected and not
    --only growth    time and memory at 1, 2, 5 and 10 times the text, repeated with a wrong letter in some words
    --only speed     encoding with the base and with what continues it

The data lies in a folder named by BAFOGPT_SHARED, or ``shared`` beside the repository; ``--data`` names another.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import random
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SIZES = (2_000, 4_000, 8_000, 16_000, 32_000, 40_000)
TIMES = (1, 2, 5, 10)
NOISE = 0.01
"""Share of the words of a copy that get a wrong letter."""
DATA = Path(os.environ.get("BAFOGPT_SHARED") or Path(__file__).parents[2] / "shared") / "data"


def measured(base: Path, corpus: list[str], protect: list[str], out: Path, pieces: int) -> dict[str, Any]:
    """Run the command in a process of its own: its report, CPU seconds (children too) and peak memory in MB."""
    command = [sys.executable, "-m", "bafogpt.cli.main", "tokenizer", "extend", "--json", "--base", str(base)]
    command += ["--pieces", str(pieces), "--out", str(out)]
    command += [word for source in corpus for word in ("--corpus", source)]
    command += [word for source in protect for word in ("--protect", source)]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"exit code {process.returncode}"
    cost = {"wall_s": time.monotonic() - began, "cpu_s": usage.ru_utime + usage.ru_stime}
    return {**json.loads(printed), **cost, "peak_mb": usage.ru_maxrss / 1024}


def quality(data: Path, folder: Path) -> list[dict[str, Any]]:
    """A row for each number of pieces: the first merges of the largest tokenizer are the smaller one's."""
    from bafogpt.data.vocabulary.report import report

    corpus, base = str(data / "zulu" / "corpus"), data / "gemma_tokenizer"
    measure = {
        "ntrex": data / "zulu/eval/ntrex_eng_zul.jsonl.gz",
        "flores": data / "zulu/eval/flores_devtest_zul.jsonl.gz",
    }
    rows: list[dict[str, Any]] = []
    for name, protect in (("protected", [corpus]), ("unprotected", [])):
        made = folder / name
        print(json.dumps({"kind": name, **measured(base, [corpus], protect, made, SIZES[-1])}), flush=True)
        cuts = [made if size == SIZES[-1] else shortened(made, folder / f"{name}-{size}", size) for size in SIZES]
        named = [str(base), *map(str, cuts)]
        ntrex = report(named, [str(measure["ntrex"])], [str(measure["ntrex"])])
        flores = report(named, [str(measure["flores"])])
        for size, row, other in zip((0, *SIZES), ntrex, flores, strict=True):
            assert row.protected is not None
            rows.append(
                {
                    "kind": name,
                    "pieces": size,
                    "ntrex": row.text.tokens_per_word,
                    "flores": other.text.tokens_per_word,
                    "used": row.text.used_new,
                    "unreachable": row.unreachable,
                    "english": row.protected.tokens_per_word,
                    "changed": row.protected.changed,
                    "lines": row.protected.lines,
                    "words": row.protected.changed_words,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def shortened(made: Path, out: Path, pieces: int) -> Path:
    """The same tokenizer with its first ``pieces`` new pieces only."""
    content = json.loads((made / "tokenizer.json").read_text(encoding="utf-8"))
    model = content["model"]
    extra = SIZES[-1] - pieces
    model["vocab"] = dict(list(model["vocab"].items())[:-extra])
    model["merges"] = model["merges"][:-extra]
    out.mkdir()
    (out / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return out


def growth(data: Path, folder: Path) -> list[dict[str, Any]]:
    """A row for each multiple of the text."""
    rows = []
    for times in TIMES:
        corpus = folder / f"corpus-{times}"
        copies(data / "zulu" / "corpus", corpus, times)
        row = measured(data / "gemma_tokenizer", [str(corpus)], [], folder / f"grown-{times}", SIZES[-1])
        kept = ("words", "distinct_words", "units", "seconds", "wall_s", "cpu_s", "peak_mb")
        rows.append({"times": times, **{key: row[key] for key in kept}})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def copies(corpus: Path, out: Path, times: int) -> None:
    """The corpus ``times`` over; each copy but the first has a wrong letter in some of its words."""
    chance = random.Random(times)
    out.mkdir()
    for file in sorted(corpus.glob("*.jsonl.gz")):
        records = records_of(file)
        for copy in range(times):
            lines = (json.dumps(noisy(record, chance) if copy else record, ensure_ascii=False) for record in records)
            (out / f"{file.name.partition('.')[0]}_{copy}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def records_of(file: Path) -> list[dict[str, Any]]:
    """The objects of a ``.jsonl.gz``."""
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


def noisy(record: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """The record with wrong letters in its isiZulu."""
    return record | {key: wrong(record[key], chance) for key in ("text", "zul") if isinstance(record.get(key), str)}


def wrong(text: str, chance: random.Random) -> str:
    """``text`` with one letter of some words replaced."""
    words = text.split(" ")
    for index, word in enumerate(words):
        if word and chance.random() < NOISE:
            place = chance.randrange(len(word))
            words[index] = word[:place] + chance.choice(string.ascii_lowercase) + word[place + 1 :]
    return " ".join(words)


def speed(data: Path, folder: Path, repeat: int) -> list[dict[str, Any]]:
    """Microseconds a word of each side of NTREX, one thread, the two tokenizers in turn; medians."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    made = folder / "protected"
    if not made.exists():
        corpus = str(data / "zulu" / "corpus")
        measured(data / "gemma_tokenizer", [corpus], [corpus], made, SIZES[-1])
    engines = {"base": data / "gemma_tokenizer", "extended": made}
    loaded = {name: Tokenizer.from_file(str(each / "tokenizer.json")) for name, each in engines.items()}
    for engine in loaded.values():
        engine.model._resize_cache(0)  # or it would only look up what it saw in the turn before
    lines = records_of(data / "zulu/eval/ntrex_eng_zul.jsonl.gz")
    rows = []
    for language in ("eng", "zul"):
        texts = [line[language] for line in lines]
        words = sum(len(text.split()) for text in texts)
        took: dict[str, list[float]] = {name: [] for name in loaded}
        for turn in range(repeat):
            for name in sorted(loaded, reverse=bool(turn % 2)):
                began = time.process_time()
                loaded[name].encode_batch_fast(texts, add_special_tokens=False)
                took[name].append(1e6 * (time.process_time() - began) / words)
        ratio = statistics.median(a / b for a, b in zip(took["extended"], took["base"], strict=True))
        rows.append({"language": language, **{n: statistics.median(t) for n, t in took.items()}, "ratio": ratio})
        print(json.dumps(rows[-1]), flush=True)
    return rows


@contextlib.contextmanager
def workspace(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="bafogpt-bench-tokenizer-") as folder:
        yield Path(folder)


def main() -> None:
    """Measure and print, a JSON object a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", default="quality,growth,speed")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it")
    options = parser.parse_args()
    if not (options.data / "zulu" / "corpus").is_dir():
        sys.exit(f"bench: no data at {options.data}; name it by --data or BAFOGPT_SHARED")
    chosen = options.only.split(",")
    with workspace(options.keep) as folder:
        if "quality" in chosen:
            quality(options.data, folder)
        if "growth" in chosen:
            growth(options.data, folder)
        if "speed" in chosen:
            speed(options.data, folder, options.repeat)


if __name__ == "__main__":
    main()
