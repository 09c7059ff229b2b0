"""``bafogpt model``: models in, out, larger by a tokenizer's new pieces; what one is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bafogpt.cli import publish as publishing
from bafogpt.cli.console.options import BandwidthOption, JsonOption, QuietOption
from bafogpt.cli.console.output import Output
from bafogpt.core.errors import UsageError

if TYPE_CHECKING:
    from bafogpt.model.export import Export
    from bafogpt.model.formats.folder import ModelFolder
    from bafogpt.model.merge import MergeTarget

app = typer.Typer(
    no_args_is_help=True, help="Models in and out: pull, publish, export, merge, expand for a tokenizer, show."
)
app.command()(publishing.publish)

PublishedArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="ORG/NAME of the Hub (or hf://ORG/NAME@REV), models/NAME of the bucket, or a URL."
    ),
]
FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="A model folder on this machine.")]
MadeArgument = Annotated[
    str, typer.Argument(metavar="RUN|FOLDER", help="A run, for its newest checkpoint, or a folder on this machine.")
]
OutOption = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to make.")]
PullTargetArgument = Annotated[
    str, typer.Argument(metavar="[DST]", help="Folder it becomes; a URL keeps nothing here. Default: models/NAME.")
]
FormatOption = Annotated[
    str, typer.Option("--format", metavar="hf|litgpt", help="Hugging Face's layout, or litgpt's (pickled).")
]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", metavar="TYPE", help="Convert to bfloat16, float16 or float32.")
]
ShardOption = Annotated[float, typer.Option("--shard-gb", help="Largest file, in GB.")]
TokenizerOption = Annotated[
    Path, typer.Option("--tokenizer", metavar="DIR", help="What 'bafogpt tokenizer extend' made of the model's own.")
]
InitOption = Annotated[
    str,
    typer.Option(
        "--init", metavar="subtokens|mean", help="New rows: the mean of the piece's own base tokens, or of all rows."
    ),
]
AdapterArgument = Annotated[
    str, typer.Argument(metavar="ADAPTER|RUN", help="An adapter's folder, as PEFT has it, or a run that made one.")
]
IntoOption = Annotated[
    str | None,
    typer.Option(
        "--into",
        metavar="dequantised|original",
        help="The base as 4 bits made it in training, or as it is on disk. Default: what a run had; dequantised.",
    ),
]
MergeOption = Annotated[bool, typer.Option("--merge", help="Of a fine-tuning: base and adapter as one model.")]
TextOption = Annotated[
    list[str] | None,
    typer.Option("--text", metavar="SOURCE", help="Held-out text to compare on; default: the starter's. Repeatable."),
]
LossOption = Annotated[bool, typer.Option("--loss/--no-loss", help="Measure the loss before and after.")]


@app.command()
def pull(
    model: PublishedArgument,
    target: PullTargetArgument = "",
    max_bandwidth: BandwidthOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fetch a published model: config, safetensors and tokenizer, verified, and nothing else of the repository.

    The same command given again after an interruption goes on. HF_TOKEN is read from the environment.
    """
    from bafogpt.core import settings
    from bafogpt.model import pull as pulling
    from bafogpt.model.formats.folder import ModelFolder
    from bafogpt.storage.folders import sync
    from bafogpt.storage.folders.uri import locate
    from bafogpt.storage.transfer import bandwidth

    out = Output.of(json=json, quiet=quiet)
    config = settings.load()
    source = pulling.source_of(model, config)
    name = source.url.partition("@")[0].rpartition("/")[2]
    place = locate(target or f"models/{name}", config, "local")
    limit = bandwidth.Bandwidth(bandwidth.parse(max_bandwidth)) if max_bandwidth else None
    with out.progress("comparing", None, unit="B") as advance:
        plan = pulling.prepare(source, place, progress=advance)
    with out.progress("copying", plan.bytes_to_send, unit="B") as advance:
        report = sync.execute(plan, progress=advance, bandwidth=limit)
    text = f"{report.files} files, {report.bytes / 1e6:,.1f} MB, verified by {report.verified_by}"
    if place.local is not None:
        opened = ModelFolder.open(place.local)
        out.result(_record(opened), f"{_described(opened)}\n{text}", id=str(place.local))
    else:
        out.result({"target": report.target, "bytes": report.bytes}, f"{report.target}: {text}", id=report.target)


@app.command()
def show(folder: FolderArgument, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Say what a model folder holds; only headers are read."""
    from bafogpt.model.formats.folder import ModelFolder

    opened = ModelFolder.open(folder)
    Output.of(json=json, quiet=quiet).result(_record(opened), _described(opened), id=str(folder))


@app.command()
def export(
    model: MadeArgument,
    out: OutOption,
    form: FormatOption = "hf",
    dtype: DtypeOption = None,
    step: publishing.StepOption = None,
    best: publishing.BestOption = False,
    merge: MergeOption = False,
    shard_gb: ShardOption = 5.0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a run's model, or a model folder, as safetensors for transformers, or as litgpt has it.

    Of a fine-tuning it is the adapter, as PEFT has it, and with --merge the model. A run's checkpoint is fetched whole
    for that, beside --out, and removed afterwards.
    """
    from dataclasses import replace

    from bafogpt.model import export as exporting

    sink = Output.of(json=json, quiet=quiet)
    if form not in exporting.FORMATS:
        raise UsageError(f"--format {form} is not known", f"one of {', '.join(exporting.FORMATS)}")
    if Path(model).is_dir():
        _export(sink, exporting.open_folder(Path(model)), out, form, dtype, shard_gb)
        return
    from bafogpt.core import files, settings
    from bafogpt.model import adapter_export, runs
    from bafogpt.storage.bucket import Bucket

    config = settings.load()
    bucket = Bucket.open(config.bucket, config)
    run = runs.find(bucket, model.removeprefix("runs/"), step, best=best)
    if run.adapter is not None and not merge and (form != "hf" or dtype):
        raise UsageError(f"run {run.name} has made an adapter, which has one layout", "--merge makes a model of it")
    files.require_new(out)
    with files.scratch_folder(out.parent) as scratch:
        with sink.progress("fetching", sum(file.bytes for file in run.checkpoint.files), unit="B") as advance:
            if run.adapter is None:
                found = runs.fetch(bucket, run, scratch, progress=advance)
            elif merge:
                adapter_export.export_merged(bucket, run, scratch, scratch / "merged", config, fetched=advance)
                changes = runs.origin(bucket, run).changes
                found = replace(exporting.open_folder(scratch / "merged"), changes=changes)
            else:
                _adapter(sink, adapter_export.export_adapter(bucket, run, scratch, out, progress=advance))
                return
        _export(sink, found, out, form, dtype, shard_gb)


@app.command()
def expand(
    folder: FolderArgument,
    tokenizer: TokenizerOption,
    out: OutOption,
    init: InitOption = "subtokens",
    text: TextOption = None,
    loss: LossOption = True,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Give a model rows for the pieces of a tokenizer that continues its own.

    The base's rows stay as they are, so text without a new piece has the logits that it had. What is printed besides
    is the loss on held-out text before and after: where training begins. That takes the model in memory.
    """
    from dataclasses import asdict

    from bafogpt.core import settings
    from bafogpt.model import eval_samples
    from bafogpt.model import resize_embeddings as expanding
    from bafogpt.model.formats.folder import ModelFolder

    sink = Output.of(json=json, quiet=quiet)
    if init not in expanding.INITS:
        raise UsageError(f"--init {init} is not known", f"one of {', '.join(expanding.INITS)}")
    held_out = eval_samples.sample_text(text or ["starter"], settings.load()) if loss else ""
    with sink.progress("writing", ModelFolder.open(folder).bytes, unit="B") as advance:
        report = expanding.expand(folder, tokenizer, out, init=init, progress=advance)
    record = asdict(report)
    described = (
        f"{out}: {report.base_vocabulary:,} rows and {report.pieces:,} new ones ({report.init}),"
        f" {report.vocabulary:,} in all{'' if report.tied else ', in the embedding and in the head'};"
        f" {report.bytes / 1e6:,.1f} MB"
    )
    if loss:
        sink.say("measuring the loss before and after")
        for name, path in (("before", folder), ("after", out)):
            first_new = report.base_vocabulary if name == "after" else None
            found = eval_samples.measure(ModelFolder.open(path), held_out, first_new=first_new)
            record[name] = asdict(found)
            described += (
                f"\n{name}: loss {found.loss:.3f} a token, {found.bits_per_byte:.3f} bits a byte;"
                f" {found.tokens:,} tokens of {' '.join(text or ['starter'])}"
            )
            if found.new_loss is not None and found.old_loss is not None:
                described += (
                    f"\nafter, {found.new_tokens:,} new pieces: loss {found.new_loss:.3f} each;"
                    f" the others: {found.old_loss:.3f}"
                )
    sink.result(record, described, id=str(out))


@app.command()
def merge(
    folder: FolderArgument,
    adapter: AdapterArgument,
    out: OutOption,
    into: IntoOption = None,
    text: TextOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make an adapter part of its base, and compare what comes out with what was trained.

    Loss and likeliest tokens on held-out text are printed for both.
    """
    from dataclasses import asdict

    from bafogpt.core import files, settings
    from bafogpt.model import eval_samples
    from bafogpt.model import merge as merging
    from bafogpt.model.formats.folder import ModelFolder

    sink = Output.of(json=json, quiet=quiet)
    if into is not None and into not in merging.MERGE_TARGETS:
        raise UsageError(f"--into {into} is not known", f"one of {', '.join(merging.MERGE_TARGETS)}")
    opened = ModelFolder.open(folder)
    held_out = eval_samples.text_samples(opened, text or ["starter"], settings.load())
    with files.scratch_folder(out.parent) as scratch:
        pairs, trained_on = _pairs(adapter, scratch)
        into = into or trained_on
        with sink.progress("writing", opened.bytes, unit="B") as advance:
            found = merging.merge(folder, pairs, out, held_out, into=into, progress=advance)
    described = (
        f"{out}: {adapter} merged into the {into} {folder}\n"
        f"on {found.tokens:,} tokens of {found.samples} samples: loss {found.merged_loss:.4f},"
        f" as trained {found.trained_loss:.4f}; the same likeliest token for {found.argmax:.2%};"
        f" largest difference of a logit {found.largest_difference:.3g}"
    )
    sink.result({"out": str(out), "into": into, **asdict(found)}, described, id=str(out))


def _pairs(adapter: str, scratch: Path) -> tuple[Path, MergeTarget]:
    """The folder of an adapter, fetched below ``scratch`` where a run is named; and which base it was trained on."""
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


def _adapter(sink: Output, folder: Path) -> None:
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


def _described(folder: ModelFolder) -> str:
    config, record = folder.config, _record(folder)
    head = "the embedding is the head" if folder.tied else "a head of its own"
    return (
        f"{folder.path}: {config.name}, {folder.parameters / 1e6:,.1f} M parameters, {record['dtype']},"
        f" {folder.bytes / 1e6:,.1f} MB\n"
        f"{config.n_layer} layers of width {config.n_embd}, vocabulary {config.padded_vocab_size:,}, {head}"
    )
