"""``bafogpt model``: pull, publish, export, merge and show models; resize one for an extended tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bafogpt.cli import publish as publishing
from bafogpt.cli.console.app import App
from bafogpt.cli.console.options import (
    BestOption,
    DtypeOption,
    RunOrFolderArgument,
    StepOption,
    TransferFlags,
)
from bafogpt.cli.console.output import Output
from bafogpt.core.errors import UsageError

if TYPE_CHECKING:
    from bafogpt.core.settings import Settings
    from bafogpt.model.eval_samples import TextLoss
    from bafogpt.model.export import Export
    from bafogpt.model.formats.folder import ModelFolder
    from bafogpt.model.merge import MergeTarget
    from bafogpt.model.resize_embeddings import ExpandReport
    from bafogpt.model.runs import RunModel
    from bafogpt.storage.bucket import Bucket, ProgressCallback

app = App(no_args_is_help=True, help="Pull, publish, export, merge, expand and show models.")
app.command()(publishing.publish)

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="A model folder on this machine.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to create.")]
TextOption = Annotated[
    list[str] | None,
    typer.Option("--text", metavar="SOURCE", help="Held-out text to evaluate on. Default: the starter's. Repeatable."),
]
PublishedArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="ORG/NAME of the Hub (or hf://ORG/NAME@REV), models/NAME of the bucket, or a URL."
    ),
]
FormatOption = Annotated[
    str, typer.Option("--format", metavar="hf|litgpt", help="Hugging Face's format, or litgpt's (pickled).")
]
ShardOption = Annotated[
    float, typer.Option("--shard-gb", metavar="GB", help="Largest size of a safetensors file, in GB.")
]
InitOption = Annotated[
    str,
    typer.Option(
        "--init",
        metavar="subtokens|mean",
        help="Initialise a new row with the mean of its base tokens' rows, or of all rows.",
    ),
]
TokenizerOption = Annotated[
    Path,
    typer.Option("--tokenizer", metavar="DIR", help="Folder that 'bafogpt tokenizer extend' created."),
]
AdapterArgument = Annotated[
    str,
    typer.Argument(metavar="ADAPTER|RUN", help="Folder of an adapter in PEFT's format, or a run."),
]
IntoOption = Annotated[
    str | None,
    typer.Option(
        "--into",
        metavar="dequantised|original",
        help="Merge into the base as quantised in training, or as stored. Default: the run's, else dequantised.",
    ),
]
LossOption = Annotated[bool, typer.Option("--loss/--no-loss", help="Measure the loss on --text before and after.")]
MergeOption = Annotated[bool, typer.Option("--merge", help="Merge the adapter of a fine-tuning run into its base.")]
PullTargetArgument = Annotated[
    str, typer.Argument(metavar="DST", help="Folder to create, or a URL. Default: models/NAME.")
]


@app.command()
def pull(
    model: PublishedArgument,
    transfer: TransferFlags,
    out: Output,
    target: PullTargetArgument = "",
) -> None:
    """Download a published model (config, safetensors, tokenizer only) and verify its checksums.

    Repeat the command to resume after an interruption. HF_TOKEN is read from the environment.
    """
    from bafogpt.core import settings
    from bafogpt.folders import sync
    from bafogpt.folders.uri import locate
    from bafogpt.model import pull as pulling
    from bafogpt.model.formats.folder import ModelFolder

    config, bandwidth = settings.load(), transfer.bandwidth
    source = pulling.source_of(model, config)
    name = source.url.partition("@")[0].rpartition("/")[2]
    place = locate(target or f"models/{name}", config, "local")
    with out.progress("comparing", None, unit="B") as advance:
        plan = pulling.prepare(source, place, progress=advance)
    with out.progress("copying", plan.bytes_to_send, unit="B") as advance:
        report = sync.execute(plan, progress=advance, bandwidth=bandwidth)
    text = f"{report.files} files, {report.bytes / 1e6:,.1f} MB, verified by {report.verified_by}"
    if place.local is not None:
        opened = ModelFolder.open(place.local)
        out.result(_record(opened), f"{_describe(opened)}\n{text}", id=str(place.local))
    else:
        out.result({"target": report.target, "bytes": report.bytes}, f"{report.target}: {text}", id=report.target)


@app.command()
def show(folder: FolderArgument, out: Output) -> None:
    """Show a model folder's architecture, size and dtype; only headers are read."""
    from bafogpt.model.formats.folder import ModelFolder

    opened = ModelFolder.open(folder)
    out.result(_record(opened), _describe(opened), id=str(folder))


@app.command()
def export(
    model: RunOrFolderArgument,
    out: OutOption,
    sink: Output,
    form: FormatOption = "hf",
    dtype: DtypeOption = None,
    step: StepOption = None,
    best: BestOption = False,
    merge: MergeOption = False,
    shard_gb: ShardOption = 5.0,
) -> None:
    """Export a run's model, or a model folder, in the format of transformers or of litgpt.

    A fine-tuning run exports its adapter, in PEFT's format, or with --merge the whole model. A run's checkpoint is
    downloaded to a temporary folder beside --out.
    """
    from bafogpt.core import files, settings
    from bafogpt.model import export as exporting
    from bafogpt.model import runs
    from bafogpt.storage.bucket import Bucket

    if form not in exporting.FORMATS:
        raise UsageError(f"--format {form} is unknown", f"one of {', '.join(exporting.FORMATS)}")
    if Path(model).is_dir():
        _export(sink, exporting.open_folder(Path(model)), out, form, dtype, shard_gb)
        return
    config = settings.load()
    bucket = Bucket.open(config.bucket, config)
    run = runs.find(bucket, model.removeprefix("runs/"), step, best=best)
    if run.adapter is not None and not merge and (form != "hf" or dtype):
        raise UsageError(f"run {run.name} has trained an adapter, which has one format", "add --merge")
    files.require_new(out)
    with files.scratch_folder(out.parent) as scratch:
        with sink.progress("fetching", sum(file.bytes for file in run.checkpoint.files), unit="B") as advance:
            found = _fetch(bucket, run, scratch, out, merge, config, advance)
        if found is None:
            _print_adapter(sink, out)
        else:
            _export(sink, found, out, form, dtype, shard_gb)


@app.command()
def expand(
    folder: FolderArgument,
    tokenizer: TokenizerOption,
    out: OutOption,
    sink: Output,
    init: InitOption = "subtokens",
    text: TextOption = None,
    loss: LossOption = True,
) -> None:
    """Resize a model's embeddings for an extended tokenizer.

    The rows of the base do not change, so text without a new token keeps its logits. Measuring the loss loads the
    model into memory.
    """
    from dataclasses import asdict

    from bafogpt.core import settings
    from bafogpt.model import eval_samples
    from bafogpt.model import resize_embeddings as resizing
    from bafogpt.model.formats.folder import ModelFolder

    if init not in resizing.INITS:
        raise UsageError(f"--init {init} is unknown", f"one of {', '.join(resizing.INITS)}")
    sources = text or ["starter"]
    held_out = eval_samples.sample_text(sources, settings.load()) if loss else ""
    with sink.progress("writing", ModelFolder.open(folder).bytes, unit="B") as advance:
        report = resizing.expand(folder, tokenizer, out, init=init, progress=advance)
    record, lines = asdict(report), [_describe_expanded(out, report)]
    if loss:
        sink.say("measuring the loss before and after")
        for name, path, first_new in (("before", folder, None), ("after", out, report.base_vocabulary)):
            found = eval_samples.measure(ModelFolder.open(path), held_out, first_new=first_new)
            record[name] = asdict(found)
            lines += _describe_loss(name, found, sources)
    sink.result(record, "\n".join(lines), id=str(out))


@app.command()
def merge(
    folder: FolderArgument,
    adapter: AdapterArgument,
    out: OutOption,
    sink: Output,
    into: IntoOption = None,
    text: TextOption = None,
) -> None:
    """Merge an adapter into its base, and compare the result with the trained model.

    Prints both losses on held-out text, and how often the most likely token is the same.
    """
    from dataclasses import asdict

    from bafogpt.core import files, settings
    from bafogpt.model import eval_samples
    from bafogpt.model import merge as merging
    from bafogpt.model.formats.folder import ModelFolder

    if into is not None and into not in merging.MERGE_TARGETS:
        raise UsageError(f"--into {into} is unknown", f"one of {', '.join(merging.MERGE_TARGETS)}")
    opened = ModelFolder.open(folder)
    held_out = eval_samples.text_samples(opened, text or ["starter"], settings.load())
    with files.scratch_folder(out.parent) as scratch:
        pairs, trained_on = _adapter_folder(adapter, scratch)
        into = into or trained_on
        with sink.progress("writing", opened.bytes, unit="B") as advance:
            found = merging.merge(folder, pairs, out, held_out, into=into, progress=advance)
    described = (
        f"{out}: {adapter} merged into the {into} {folder}\n"
        f"on {found.tokens:,} tokens of {found.samples} samples: loss {found.merged_loss:.4f},"
        f" as trained {found.trained_loss:.4f}; the same most likely token for {found.argmax:.2%};"
        f" largest difference of a logit {found.largest_difference:.3g}"
    )
    sink.result({"out": str(out), "into": into, **asdict(found)}, described, id=str(out))


def _fetch(
    bucket: Bucket, run: RunModel, scratch: Path, out: Path, merge: bool, config: Settings, advance: ProgressCallback
) -> Export | None:
    """A run's model; None where the run's adapter has been written to ``out``."""
    from dataclasses import replace

    from bafogpt.model import adapter_export, runs
    from bafogpt.model import export as exporting

    if run.adapter is None:
        return runs.fetch(bucket, run, scratch, progress=advance)
    if not merge:
        adapter_export.export_adapter(bucket, run, scratch, out, progress=advance)
        return None
    adapter_export.export_merged(bucket, run, scratch, scratch / "merged", config, fetched=advance)
    return replace(exporting.open_folder(scratch / "merged"), changes=runs.origin(bucket, run).changes)


def _describe_expanded(out: Path, report: ExpandReport) -> str:
    return (
        f"{out}: {report.base_vocabulary:,} rows and {report.pieces:,} new ones ({report.init}),"
        f" {report.vocabulary:,} in all{'' if report.tied else ', in the embedding and in the head'};"
        f" {report.bytes / 1e6:,.1f} MB"
    )


def _describe_loss(name: str, found: TextLoss, sources: list[str]) -> list[str]:
    lines = [
        f"{name}: loss {found.loss:.3f} a token, {found.bits_per_byte:.3f} bits a byte;"
        f" {found.tokens:,} tokens of {' '.join(sources)}"
    ]
    if found.new_loss is not None and found.old_loss is not None:
        lines.append(
            f"after, {found.new_tokens:,} new pieces: loss {found.new_loss:.3f} each; the others: {found.old_loss:.3f}"
        )
    return lines


def _adapter_folder(adapter: str, scratch: Path) -> tuple[Path, MergeTarget]:
    """The folder of an adapter, fetched to ``scratch`` if it is a run's; and the base that it was trained on."""
    from bafogpt.core import settings
    from bafogpt.model import adapter_export, runs
    from bafogpt.storage.bucket import Bucket

    name = adapter.removeprefix("runs/")
    if Path(adapter).is_dir() or "/" in name:
        return Path(adapter), "dequantised"
    config = settings.load()
    bucket = Bucket.open(config.bucket, config)
    run = runs.find(bucket, name)
    return adapter_export.export_adapter(
        bucket, run, scratch / "run", scratch / "adapter"
    ), adapter_export.merge_target(run)


def _print_adapter(sink: Output, folder: Path) -> None:
    size = sum(path.stat().st_size for path in folder.iterdir())
    text = f"{folder}: an adapter, {size / 1e6:,.1f} MB; with --merge: base and adapter as one model"
    sink.result({"out": str(folder), "format": "peft", "bytes": size}, text, id=str(folder))


def _export(sink: Output, found: Export, out: Path, form: str, dtype: str | None, shard_gb: float) -> None:
    from typing import cast

    from bafogpt.model import export as exporting

    wanted = found.as_dtype(dtype)
    with sink.progress("writing", wanted.bytes, unit="B") as advance:
        exporting.write(wanted, out, cast(exporting.Format, form), shard_bytes=int(shard_gb * 1e9), progress=advance)
    names = [path.name for path in wanted.companions]
    record = {"out": str(out), "format": form, "bytes": wanted.bytes, "tied": wanted.tied, "files": names}
    text = f"{out}: {wanted.bytes / 1e6:,.1f} MB of weights" + ("" if names else ", no tokenizer (its data is bytes)")
    sink.result(record, text, id=str(out))


def _record(folder: ModelFolder) -> dict[str, object]:
    config = folder.config
    return {
        "folder": str(folder.path),
        "name": config.name,
        "parameters": folder.parameters,
        "bytes": folder.bytes,
        "dtype": str(folder.dtype).removeprefix("torch."),
        "layers": config.n_layer,
        "width": config.n_embd,
        "heads": config.n_head,
        "groups": config.n_query_groups,
        "vocabulary": config.padded_vocab_size,
        "positions": config.block_size,
        "window": config.sliding_window_size,
        "tied": folder.tied,
        "companion_files": [path.name for path in folder.companions()],
    }


def _describe(folder: ModelFolder) -> str:
    config, record = folder.config, _record(folder)
    head = "tied embeddings" if folder.tied else "a separate head"
    return (
        f"{folder.path}: {config.name}, {folder.parameters / 1e6:,.1f} M parameters, {record['dtype']},"
        f" {folder.bytes / 1e6:,.1f} MB\n"
        f"{config.n_layer} layers of width {config.n_embd}, vocabulary {config.padded_vocab_size:,}, {head}"
    )
