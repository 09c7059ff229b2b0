"""``bafogpt data``: text in, a dataset of tokens out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bafogpt.cli.console.options import JsonOption, QuietOption
from bafogpt.cli.console.output import Output

if TYPE_CHECKING:
    from bafogpt.core.settings import Settings
    from bafogpt.data.instructions import InstructionReport
    from bafogpt.data.prepare import PrepareReport
    from bafogpt.storage.bucket import Bucket
    from bafogpt.storage.tokens.manifest import TokenManifest

app = typer.Typer(no_args_is_help=True, help="Make datasets of tokens from text, and look at them.")

SourceArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...",
        help="Files or folders (.jsonl, .txt, .md, each also .gz or .zst), local or s3://, or the word 'starter'.",
    ),
]
TokenizerOption = Annotated[
    str,
    typer.Option("--tokenizer", "-t", metavar="T", help="A tokenizer.json, a folder with one, or 'bytes'."),
]
OutOption = Annotated[
    str, typer.Option("--out", "-o", metavar="URL", help="Where the dataset goes: a URL, or a path in the bucket.")
]
StageOption = Annotated[
    str | None, typer.Option("--stage", metavar="NAME", help="Stage of documents that do not name their own.")
]
ReplayOption = Annotated[
    float, typer.Option("--replay-share", metavar="X", help="Share of the training tokens that is English replay.")
]
ValidationOption = Annotated[
    float, typer.Option("--validation", metavar="X", help="Share of each stage's documents that is held out.")
]
BosOption = Annotated[
    bool | None,
    typer.Option("--bos/--no-bos", help="Whether texts begin with <bos>; else as the tokenizer's own file says."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the dataset that is there.")]
DatasetArgument = Annotated[str, typer.Argument(metavar="URL", help="A dataset: a URL, or a path in the bucket.")]


class Order(StrEnum):
    """How training meets the documents."""

    CURRICULUM = "curriculum"
    SHUFFLED = "shuffled"


OrderOption = Annotated[
    Order, typer.Option("--order", help="How training meets the documents: stage after stage, or shuffled by --seed.")
]
ShuffleSeedOption = Annotated[int, typer.Option("--seed", metavar="N", help="Of the shuffled order.")]


class Learn(StrEnum):
    """What a model learns of a conversation."""

    ANSWERS = "answers"
    ALL = "all"


class TooLong(StrEnum):
    """What becomes of a conversation that does not fit."""

    CUT = "cut"
    DROP = "drop"


FilesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE[:WEIGHT]...",
        help="JSON lines with instruction, input, output, or with messages; local, s3:// or https://, or the word "
        "'starter'. FILE:2 is seen twice an epoch.",
    ),
]
StyleOption = Annotated[
    str, typer.Option("--style", metavar="S", help="Prompt style: alpaca, plain, or chat (the tokenizer's own).")
]
ContextOption = Annotated[
    int, typer.Option("--context", metavar="T", help="Tokens a sample; train.data.sequence_length must be the same.")
]
MixOption = Annotated[
    str,
    typer.Option("--mix", metavar="M", help="all; bilingual (asked in isiZulu, answered in English); zulu."),
]
LearnOption = Annotated[Learn, typer.Option("--learn", help="What the loss is taken over.")]
TooLongOption = Annotated[TooLong, typer.Option("--too-long", help="What becomes of a conversation that does not fit.")]
HeldOutOption = Annotated[
    float, typer.Option("--validation", metavar="X", help="Share of the conversations that is held out.")
]
SeedOption = Annotated[int, typer.Option("--seed", metavar="N", help="Of the order in which conversations are met.")]


@app.command("prepare")
def prepare_command(
    source: SourceArgument,
    tokenizer: TokenizerOption,
    out: OutOption,
    stage: StageOption = None,
    replay_share: ReplayOption = 0.05,
    order: OrderOption = Order.CURRICULUM,
    seed: ShuffleSeedOption = 1,
    validation: ValidationOption = 0.02,
    bos: BosOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Tokenise text into a dataset, in curriculum order or shuffled.

    The curriculum is dictionary, translation, transcription, document, news, poem, web, wikipedia. English text (stage
    replay) is mixed in evenly. A dataset appears whole: its manifest is written last.
    """
    from bafogpt.core import settings as configuration
    from bafogpt.data import tokenizer as tokenizers
    from bafogpt.data.prepare import PrepareOptions, prepare

    sink = Output.of(json=json, quiet=quiet)
    settings = configuration.load()
    options = PrepareOptions(
        stage=stage,
        replay_share=replay_share,
        order=order.value,
        seed=seed,
        validation=validation,
        bos=bos,
        overwrite=overwrite,
    )
    chosen = tokenizers.load(tokenizer)
    with _new_dataset(out, settings) as bucket, sink.progress("reading", None, unit="documents") as advance:
        report = prepare(source, tokenizer=chosen, out=bucket, options=options, settings=settings, progress=advance)
    sink.result(report.to_dict(), _summary(report), id=report.url)


@app.command("instructions")
def instructions_command(
    files: FilesArgument,
    tokenizer: TokenizerOption,
    out: OutOption,
    style: StyleOption = "alpaca",
    context: ContextOption = 2048,
    mix: MixOption = "all",
    learn: LearnOption = Learn.ANSWERS,
    too_long: TooLongOption = TooLong.CUT,
    validation: HeldOutOption = 0.02,
    seed: SeedOption = 1,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Tokenise questions and answers into a dataset for fine-tuning.

    Conversations are packed into samples, none crosses a border, and only answers are learned. What is held out
    shares no question with what is trained on, nor a question's translation where records have a 'pair'.
    """
    from bafogpt.core import settings as configuration
    from bafogpt.data import prompts
    from bafogpt.data import tokenizer as tokenizers
    from bafogpt.data.instructions import InstructionOptions, prepare

    sink = Output.of(json=json, quiet=quiet)
    settings = configuration.load()
    options = InstructionOptions(
        context=context,
        mix=mix,
        learn=learn.value,
        too_long=too_long.value,
        validation=validation,
        seed=seed,
        overwrite=overwrite,
    )
    chosen = tokenizers.load(tokenizer)
    style_of = prompts.load(style, chosen)
    with _new_dataset(out, settings) as bucket, sink.progress("reading", None, unit="records") as advance:
        report = prepare(
            files,
            style=style_of,
            tokenizer=chosen,
            out=bucket,
            options=options,
            settings=settings,
            progress=advance,
        )
    sink.result(report.to_dict(), _said(report), id=report.url)


@app.command("show")
def show_command(url: DatasetArgument, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Show what a dataset holds: its stages in order, and their sources."""
    from bafogpt.core import settings as configuration
    from bafogpt.storage.tokens import manifest as manifests

    sink = Output.of(json=json, quiet=quiet)
    bucket = _dataset(url, configuration.load())
    manifest = manifests.load(bucket)
    if json or quiet:
        sink.result(_record(bucket.url, manifest), id=manifest.digest)
        return
    sink.say(_headline(bucket.url, manifest))
    sink.rows(_rows(manifest), ["split", "stage", "source", "begins", "documents", "tokens", "share"], id="stage")


def _dataset(place: str, settings: Settings) -> Bucket:
    """The folder that a URL, or a path below the bucket of the settings, names."""
    from bafogpt.storage.bucket import Bucket

    if "://" in place:
        return Bucket.open(place, settings)
    return Bucket.open(settings.bucket, settings).child(place)


@contextlib.contextmanager
def _new_dataset(place: str, settings: Settings) -> Iterator[Bucket]:
    """The folder for a new dataset. A local folder, or the bucket of the embedded server, is created if needed."""
    from bafogpt.core import files
    from bafogpt.core import settings as configuration

    bucket = _dataset(place, settings)
    if bucket.url.startswith("file://"):
        with files.created_folder(Path(bucket.url.removeprefix("file://"))):
            yield bucket
        return
    if settings.s3_endpoint == configuration.EMBEDDED:
        bucket.create()
    yield bucket


def _said(report: InstructionReport) -> str:
    """What a person wants to know of instructions that were just made."""
    train, validation = report.conversations["train"], report.conversations["validation"]
    learned = f"{report.tokens:,} tokens, {100 * report.learned / report.tokens:.1f} % of them learned"
    odd = (("cut", report.cut), ("dropped", report.dropped), ("duplicates left out", report.duplicates))
    counts = ", ".join(f"{count:,} {what}" for what, count in odd)
    return "\n".join(
        (
            f"{report.records:,} records of {report.files} files: {counts}",
            f"train {train:,} conversations, {learned}; {report.samples['train']:,} samples, "
            f"{100 * report.filled:.1f} % full",
            f"validation {validation:,} conversations, {report.samples['validation']:,} samples",
            f"wrote {report.url} in {report.seconds:.1f} s",
        )
    )


def _record(url: str, manifest: TokenManifest) -> dict[str, Any]:
    """The manifest without its shards."""
    content = asdict(manifest)
    for split in content["splits"].values():
        split["shards"] = len(split["shards"])
    return {"url": url, "digest": manifest.digest, **content}


def _rows(manifest: TokenManifest) -> list[dict[str, Any]]:
    """Each stage of each split in the order of the stream, below it its sources, and at the end the total."""
    rows: list[dict[str, Any]] = []
    for name, split in manifest.splits.items():
        for stage in split.stages:
            counts = {"begins": stage.start_token, "documents": stage.documents, "tokens": stage.tokens}
            rows.append({"split": name, "stage": stage.name, **counts})
            for source, tokens in stage.sources.items():
                rows.append({"split": name, "stage": stage.name, "source": source, "tokens": tokens})
        rows.append({"split": name, "stage": "total", "documents": split.documents, "tokens": split.tokens})
    for row in rows:
        row["share"] = f"{100 * row['tokens'] / max(manifest.splits[row['split']].tokens, 1):.1f} %"
    return rows


def _headline(url: str, manifest: TokenManifest) -> str:
    splits = ", ".join(f"{name} {split.tokens:,} tokens" for name, split in manifest.splits.items())
    return f"{url}: {splits}; tokenizer {manifest.tokenizer.name}, {manifest.dtype}"


def _summary(report: PrepareReport) -> str:
    """What a person wants to know of a dataset that was just made."""
    lines = [f"{'stage':<14}{'documents':>11}{'words':>13}{'tokens':>13}{'MB':>9}"]
    for stage, count in [*report.stages.items(), ("total", report.total)]:
        sizes = f"{count.documents:>11,}{count.words:>13,}{count.tokens:>13,}{count.bytes / 1e6:>9,.2f}"
        lines.append(f"{stage:<14}{sizes}")
    left_out = f"; left out: {report.empty} empty, {report.duplicates} that repeat a validation text"
    split = f"train {report.train_tokens:,} tokens, {100 * report.replay_share:.1f} % of it replay"
    lines += [
        f"{split}; validation {report.validation_tokens:,} tokens{left_out}",
        f"wrote {report.url} in {report.seconds:.1f} s",
    ]
    return "\n".join(lines)
