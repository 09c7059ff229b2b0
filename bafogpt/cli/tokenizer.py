"""``bafogpt tokenizer``: continue a tokenizer for another language, make one, and say what they are worth."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bafogpt.cli.console.options import JsonOption, QuietOption
from bafogpt.cli.console.output import Output

if TYPE_CHECKING:
    from bafogpt.data.vocabulary.extend import ExtendReport
    from bafogpt.data.vocabulary.report import TokenizerStats

app = typer.Typer(no_args_is_help=True, help="Continue a tokenizer for another language, make one, compare them.")

TokenizersArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="TOKENIZER...",
        help="tokenizer.json, a folder with one, or a SentencePiece .model; the others are held against the first.",
    ),
]
BaseOption = Annotated[
    str, typer.Option("--base", "-b", metavar="T", help="The tokenizer to continue: a tokenizer.json, or its folder.")
]
CorpusOption = Annotated[
    list[str],
    typer.Option(
        "--corpus",
        "-c",
        metavar="SOURCE",
        help="Text to learn from: a file or folder, local or s3://, or 'starter'. Repeatable.",
    ),
]
ProtectOption = Annotated[
    list[str] | None,
    typer.Option("--protect", metavar="SOURCE", help="Text whose tokens must stay as they are. Repeatable."),
]
PiecesOption = Annotated[int, typer.Option("--pieces", metavar="N", help="New pieces, rounded up: see --pad.")]
SizeOption = Annotated[int, typer.Option("--pieces", metavar="N", help="Pieces in all, with special ones and bytes.")]
LanguageOption = Annotated[
    str, typer.Option("--language", metavar="CODE", help="Language to learn or measure: one side of parallel text.")
]
ProtectLanguageOption = Annotated[
    str, typer.Option("--protect-language", metavar="CODE", help="Language of the protected text.")
]
PadOption = Annotated[
    bool, typer.Option("--pad", help="Reach a multiple of 64 with padding pieces in place of more real ones.")
]
NewFolderOption = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to make.")]
TextOption = Annotated[
    list[str], typer.Option("--text", metavar="SOURCE", help="Text to measure with; not what was learned. Repeatable.")
]
ProtectedOption = Annotated[
    list[str] | None,
    typer.Option("--protected", metavar="SOURCE", help="Text that should be cut as the first one cuts it. Repeatable."),
]
PictureOption = Annotated[
    Path | None, typer.Option("--picture", metavar="FILE", help="Draw tokens a word to this .svg or .png.")
]


@app.command("extend")
def extend_command(
    base: BaseOption,
    corpus: CorpusOption,
    out: NewFolderOption,
    protect: ProtectOption = None,
    pieces: PiecesOption = 40_000,
    language: LanguageOption = "zul",
    protect_language: ProtectLanguageOption = "eng",
    pad: PadOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Continue a BPE tokenizer, Gemma's say, with pieces for another language.

    New merges come after all of the base's, so text without a learned pair is cut as before. Of parallel text
    each option takes its own language's side, so both may name the same folder.
    """
    from bafogpt.core import settings as configuration
    from bafogpt.data.vocabulary.extend import ExtendOptions, extend

    sink = Output.of(json=json, quiet=quiet)
    options = ExtendOptions(pieces=pieces, language=language, protect_language=protect_language, pad=pad)
    settings = configuration.load()
    report = extend(base, corpus, protect or [], out, options=options, settings=settings, stage=sink.progress)
    sink.result(asdict(report), _extended(report, language, protect_language), id=report.out)


@app.command("train")
def train_command(
    corpus: CorpusOption,
    out: NewFolderOption,
    pieces: SizeOption = 40_000,
    language: LanguageOption = "zul",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make a tokenizer from nothing, for a model that is trained from nothing."""
    from bafogpt.core import settings as configuration
    from bafogpt.data.vocabulary.train import train

    sink = Output.of(json=json, quiet=quiet)
    settings = configuration.load()
    with sink.progress("reading", None, unit="documents") as advance:
        made = train(corpus, out, pieces=pieces, language=language, settings=settings, progress=advance)
    text = (
        f"{made.out}: {made.size:,} pieces, {made.merges:,} merges learned from {made.words:,} words of '{language}'"
        f" in {made.documents:,} documents, in {made.seconds:.1f} s"
    )
    sink.result(asdict(made), text, id=made.out)


@app.command("report")
def report_command(
    tokenizers: TokenizersArgument,
    text: TextOption,
    protected: ProtectedOption = None,
    language: LanguageOption = "zul",
    protect_language: ProtectLanguageOption = "eng",
    picture: PictureOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say what the same text costs in each tokenizer, which pieces are of no use, and what they changed."""
    from bafogpt.core import settings as configuration
    from bafogpt.data.vocabulary import plot as pictures
    from bafogpt.data.vocabulary.report import report

    sink = Output.of(json=json, quiet=quiet)
    if picture is not None:
        pictures.require_format(picture)
    with sink.progress("measuring", len(tokenizers), unit="tokenizers") as advance:
        rows = report(
            tokenizers,
            text,
            protected or [],
            language=language,
            protect_language=protect_language,
            settings=configuration.load(),
            progress=advance,
        )
    if picture is not None:
        pictures.draw(rows, picture, language, protect_language)
    if json or quiet:
        sink.rows([row.to_dict() for row in rows], [], id="name")
        return
    shown = [_shown(row, rows[0], language, protect_language) for row in rows]
    sink.rows(shown, list(shown[0]), id="tokenizer")
    for row in rows:
        if row.protected and row.protected.changed_words:
            named = ", ".join(row.protected.changed_words)
            sink.say(f"{row.name}: words of '{protect_language}' that are cut in another way: {named}")
    if picture is not None:
        sink.say(f"wrote {picture}")


def _shown(row: TokenizerStats, first: TokenizerStats, language: str, protect_language: str) -> dict[str, Any]:
    """A row of the table."""
    shown = {
        "tokenizer": row.name,
        "pieces": f"{row.size:,}",
        "new": f"{row.new:,}",
        "unreachable": f"{row.unreachable:,}",
        "new used": f"{row.text.used_new:,}",
        f"{language} tokens/word": f"{row.text.tokens_per_word:.3f}",
        "bytes/token": f"{row.text.bytes_per_token:.2f}",
        "cost": f"{100 * row.text.tokens / first.text.tokens:.1f} %",
    }
    if row.protected:
        shown[f"{protect_language} tokens/word"] = f"{row.protected.tokens_per_word:.3f}"
        shown["lines changed"] = f"{row.protected.changed:,} of {row.protected.lines:,}"
    return shown


def _extended(report: ExtendReport, language: str, protect_language: str) -> str:
    """What a person wants to know of a tokenizer that was just made."""
    padding = f" and {report.padding} of padding" if report.padding else ""
    lines = [
        f"{report.learned:,} pieces{padding} after the base's {report.base_size:,}: {report.size:,} in all",
        f"learned from {report.words:,} words of '{language}' ({report.distinct_words:,} different);"
        f" the last piece occurred {report.lowest_count} times",
    ]
    if report.protected_words:
        lines.append(
            f"{report.protected_words:,} words of '{protect_language}' keep their tokens:"
            f" {report.forbidden_pairs:,} pairs were not to be joined"
        )
    refused = "; ".join(f"{number:,} pairs refused ({why})" for why, number in report.refused.items())
    check = report.tokenizer_model
    model = (
        f"no tokenizer.model (SentencePiece): {check.refused}"
        if check.refused
        else f"tokenizer.model (SentencePiece) gives the ids of tokenizer.json in {check.texts:,} texts"
    )
    return "\n".join([*lines, *([refused] if refused else []), model, f"wrote {report.out} in {report.seconds:.1f} s"])
