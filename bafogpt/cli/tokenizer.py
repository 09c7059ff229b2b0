"""``bafogpt tokenizer``: extend a tokenizer for another language, train one, compare tokenizers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bafogpt.cli.console.app import App
from bafogpt.cli.console.output import Output

if TYPE_CHECKING:
    from bafogpt.data.vocabulary.extend import ExtendReport
    from bafogpt.data.vocabulary.report import TokenizerStats

app = App(no_args_is_help=True, help="Extend a tokenizer for another language, train one, compare them.")

TokenizersArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="TOKENIZER",
        help="A tokenizer.json, a folder with one, or a SentencePiece .model. The first is the baseline.",
    ),
]
BaseOption = Annotated[
    str, typer.Option("--base", "-b", metavar="T", help="Tokenizer to extend: a tokenizer.json, or its folder.")
]
CorpusOption = Annotated[
    list[str],
    typer.Option(
        "--corpus",
        "-c",
        metavar="SOURCE",
        help="Text to train on: a file or folder, local or s3://, or 'starter'. Repeatable.",
    ),
]
ProtectOption = Annotated[
    list[str] | None,
    typer.Option("--protect", metavar="SOURCE", help="Text whose tokenization must not change. Repeatable."),
]
PiecesOption = Annotated[
    int, typer.Option("--pieces", metavar="N", help="Number of new tokens, rounded up: see --pad.")
]
SizeOption = Annotated[
    int, typer.Option("--pieces", metavar="N", help="Vocabulary size, including special tokens and bytes.")
]
LanguageOption = Annotated[
    str, typer.Option("--language", metavar="CODE", help="Language of the text; of parallel text, the side to read.")
]
ProtectLanguageOption = Annotated[
    str, typer.Option("--protect-language", metavar="CODE", help="Language of the protected text.")
]
PadOption = Annotated[
    bool,
    typer.Option("--pad", help="Round the vocabulary up to a multiple of 64 with padding, not with learned tokens."),
]
NewFolderOption = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to create.")]
TextOption = Annotated[
    list[str],
    typer.Option("--text", metavar="SOURCE", help="Text to measure on; not the training corpus. Repeatable."),
]
ProtectedOption = Annotated[
    list[str] | None,
    typer.Option(
        "--protected", metavar="SOURCE", help="Text that should be tokenized as by the first one. Repeatable."
    ),
]
PictureOption = Annotated[
    Path | None, typer.Option("--picture", metavar="FILE", help="Plot tokens per word to FILE, .svg or .png.")
]


@app.command("extend")
def extend_command(
    base: BaseOption,
    sink: Output,
    corpus: CorpusOption,
    out: NewFolderOption,
    protect: ProtectOption = None,
    pieces: PiecesOption = 40_000,
    language: LanguageOption = "zul",
    protect_language: ProtectLanguageOption = "eng",
    pad: PadOption = False,
) -> None:
    """Extend a BPE tokenizer, such as Gemma's, with tokens for another language.

    New merges come after all of the base's, so text without a new pair is tokenized as before. From parallel text,
    --corpus and --protect each read their own language only, so both may name the same folder.
    """
    from bafogpt.core import settings as configuration
    from bafogpt.data.vocabulary.extend import ExtendOptions, extend

    options = ExtendOptions(pieces=pieces, language=language, protect_language=protect_language, pad=pad)
    settings = configuration.load()
    report = extend(base, corpus, protect or [], out, options=options, settings=settings, stage=sink.progress)
    sink.result(asdict(report), _extended(report, language, protect_language), id=report.out)


@app.command("train")
def train_command(
    corpus: CorpusOption,
    sink: Output,
    out: NewFolderOption,
    pieces: SizeOption = 40_000,
    language: LanguageOption = "zul",
) -> None:
    """Train a tokenizer from scratch, for a model that is trained from scratch."""
    from bafogpt.core import settings as configuration
    from bafogpt.data.vocabulary.train import train

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
    sink: Output,
    text: TextOption,
    protected: ProtectedOption = None,
    language: LanguageOption = "zul",
    protect_language: ProtectLanguageOption = "eng",
    picture: PictureOption = None,
) -> None:
    """Compare tokenizers on the same text: tokens per word, unreachable tokens, changed words."""
    from bafogpt.core import settings as configuration
    from bafogpt.data.vocabulary import plot as pictures
    from bafogpt.data.vocabulary.report import report

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
    if sink.json or sink.quiet:
        sink.rows([row.to_dict() for row in rows], [], id="name")
        return
    shown = [_shown(row, rows[0], language, protect_language) for row in rows]
    sink.rows(shown, list(shown[0]), id="tokenizer")
    for row in rows:
        if row.protected and row.protected.changed_words:
            named = ", ".join(row.protected.changed_words)
            sink.say(f"{row.name}: words of '{protect_language}' that are tokenized differently: {named}")
    if picture is not None:
        sink.say(f"wrote {picture}")


def _shown(row: TokenizerStats, first: TokenizerStats, language: str, protect_language: str) -> dict[str, Any]:
    """One row of the table."""
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
    """The result for people."""
    padding = f" and {report.padding} of padding" if report.padding else ""
    lines = [
        f"{report.learned:,} pieces{padding} after the base's {report.base_size:,}: {report.size:,} in all",
        f"learned from {report.words:,} words of '{language}' ({report.distinct_words:,} different);"
        f" the last piece occurred {report.lowest_count} times",
    ]
    if report.protected_words:
        lines.append(
            f"{report.protected_words:,} words of '{protect_language}' keep their tokens:"
            f" {report.forbidden_pairs:,} pairs were not merged"
        )
    refused = "; ".join(f"{number:,} pairs refused ({why})" for why, number in report.refused.items())
    check = report.tokenizer_model
    model = (
        f"no tokenizer.model (SentencePiece): {check.refused}"
        if check.refused
        else f"tokenizer.model (SentencePiece) gives the ids of tokenizer.json in {check.texts:,} texts"
    )
    return "\n".join([*lines, *([refused] if refused else []), model, f"wrote {report.out} in {report.seconds:.1f} s"])
