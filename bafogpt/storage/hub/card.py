"""The model card, a repository's README.md: what is known is filled in, what only a person knows is marked.

It is written from a folder's metadata. Besides the facts of the table below these are known, all of them optional::

    base_model       the Hub's name of the model that training began with; empty where there is none
    license          the Hub's name of the licence; without one that of a Gemma, else to be filled in
    adapter          true for an adapter, which is loaded with its base
    picture          name of a picture of the loss, beside the card
    data             digest, tokenizer; stages: [{name, tokens, documents, languages}]
    hyperparameters  {name: value}
    evaluation       step, loss (nats a token), bpb (bits a byte); stages and languages: {name: {loss, bpb}}
    cost             hours, usd, machines
    code             {name: value}: versions, commit, image

:mod:`bafogpt.reports.model_card` collects them from a run's records.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bafogpt.core import terms

CARD = "README.md"
MARK = "<!-- written by bafogpt; remove this line and the card is yours: it is never written again -->"
_UPSTREAM = {"gemma": "google"}
"""Who publishes the models of a family on the Hub."""
_FACTS = {
    "run": "Run",
    "step": "Optimizer steps",
    "samples": "Training samples",
    "tokens": "Training tokens",
    "dataset": "Dataset",
    "sequence_length": "Sequence length",
    "precision": "Precision",
}
_GEMMA = [
    f"Gemma is provided under and subject to the [Gemma Terms of Use]({terms.GEMMA_TERMS}).",
    f"Use must follow the [Gemma Prohibited Use Policy]({terms.GEMMA_POLICY}), and redistribution must pass on these",
    "terms. This model's files are modified ones.",
    "",
]
WORD = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""What may stand in the header: a licence, or a repository's name."""


def is_ours(text: bytes) -> bool:
    """Whether the card was written here, and not by a person since."""
    return MARK.encode() in text


def write(url: str, metadata: Mapping[str, Any], files: int, size: int) -> bytes:
    """A card for the folder ``url`` (``hf://ORG/NAME``, ``s3://…``) of ``files`` files and ``size`` bytes; without
    files it does not speak of them."""
    base = base_model(metadata)
    licence = str(metadata.get("license") or terms.licence_of(base))
    origin = f"Continued pretraining of [{base}](https://huggingface.co/{base})" if base else "A language model"
    if metadata.get("adapter"):
        origin = f"A LoRA adapter for [{base}](https://huggingface.co/{base})" if base else "A LoRA adapter"
    elif metadata.get("tuned"):
        origin = f"Fine-tuned from [{base}](https://huggingface.co/{base})" if base else "An instruction model"
    licensed = f"Licence: {licence}." if WORD.fullmatch(licence) else "**Licence: to be filled in.**"
    body = [
        MARK,
        "",
        f"# {url.rstrip('/').rpartition('/')[2]}",
        "",
        f"{origin} for isiZulu, trained with bafogpt.",
        "",
        f"{licensed} It must allow what the licence of the base model and those of the texts allow.",
        "",
        *(_GEMMA if licence == terms.GEMMA else []),
        *_use(url, metadata),
        *_training(metadata),
        *_section("Evaluation", _evaluation(metadata.get("evaluation") or {})),
        *_section("Data", _data(metadata.get("data") or {})),
        *_section("Hyperparameters", _table(["", ""], (metadata.get("hyperparameters") or {}).items())),
        *_section("Code", _table(["", ""], (metadata.get("code") or {}).items())),
        *_section("Files", _files(url, files, size)),
    ]
    return "\n".join([*_header(base, licence, metadata), "", *body]).encode()


def base_model(metadata: Mapping[str, Any]) -> str:
    """The Hub's name of the model that training began with; empty when it is not known."""
    if isinstance(metadata.get("base_model"), str):
        return str(metadata["base_model"])
    name = str(metadata.get("model") or "")
    organisation = _UPSTREAM.get(name.lower().partition("-")[0])
    return f"{organisation}/{name.lower()}" if organisation else ""


def _header(base: str, licence: str, metadata: Mapping[str, Any]) -> list[str]:
    """What the Hub reads. A licence that only a person knows is ``other``."""
    known = bool(WORD.fullmatch(licence))
    return [
        "---",
        "language:",
        "- zu",
        *([f"license: {licence}"] if known else ["license: other", "license_name: to-be-filled-in"]),
        *([f"base_model: {base}"] if base else []),
        *(["library_name: peft"] if metadata.get("adapter") else []),
        "pipeline_tag: text-generation",
        "tags:",
        "- isizulu",
        "- bafogpt",
        "---",
    ]


def _use(url: str, metadata: Mapping[str, Any]) -> list[str]:
    """How to load it from the Hub; said of what is known to be a model, and not of any folder of files."""
    repo = url.removeprefix("hf://")
    if repo == url or not metadata.get("hyperparameters"):
        return []
    call = f'AutoModelForCausalLM.from_pretrained("{repo}")'
    if metadata.get("adapter"):  # peft reads the base's name in the adapter's own config
        call = f'AutoPeftModelForCausalLM.from_pretrained("{repo}")'
    library = "peft" if metadata.get("adapter") else "transformers"
    lines = [f"from {library} import {call.partition('.')[0]}", "", f"model = {call}"]
    return ["## Use", "", "```python", *lines, "```", ""]


def _training(metadata: Mapping[str, Any]) -> list[str]:
    """The facts, what it took, and the picture."""
    known = {**metadata}
    if isinstance(known.get("samples"), int) and isinstance(known.get("sequence_length"), int):
        known.setdefault("tokens", known["samples"] * known["sequence_length"])
    rows = [(label, known[name]) for name, label in _FACTS.items() if known.get(name) is not None]
    cost = metadata.get("cost") or {}
    if cost.get("machines"):
        rows.append(("Machines", cost["machines"]))
    if cost.get("hours") is not None:
        rows.append(("Hours", f"{cost['hours']:,.2f}"))
    if cost.get("usd"):
        rows.append(("Cost", f"${cost['usd']:,.2f}"))
    found = _section("Training", _table(["", ""], rows))
    picture = metadata.get("picture")
    return [*found, f"![Training and validation loss over the steps]({picture})", ""] if picture else found


def _evaluation(found: Mapping[str, Any]) -> list[str]:
    """Loss and bits per byte on text that was never trained on: in all, by stage, by language."""
    if not found:
        return []
    parts = {"all": found, **(found.get("stages") or {}), **(found.get("languages") or {})}
    rows = [(name, *(_score(scores.get(key)) for key in ("loss", "bpb"))) for name, scores in parts.items()]
    where = f"On text that was held out, after step {_plain(found.get('step', ''))}."
    return [where, "", *_table(["Held-out text", "Loss, nats a token", "Bits a byte"], rows)]


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _data(found: Mapping[str, Any]) -> list[str]:
    """Which tokens were read: by their manifest's digest, and stage by stage."""
    facts = [
        (label, f"`{found[key]}`")
        for key, label in (("digest", "Manifest"), ("tokenizer", "Tokenizer"))
        if found.get(key)
    ]
    stages = [
        (each["name"], each["tokens"], each["documents"], ", ".join(each.get("languages") or ()) or "–")
        for each in found.get("stages") or ()
    ]
    parts = [_table(["", ""], facts), _table(["Stage, in order", "Tokens", "Documents", "Languages"], stages)]
    return [line for part in parts if part for line in (*part, "")][:-1]


def _files(url: str, files: int, size: int) -> list[str]:
    if not files:
        return []
    return [
        f"{files} files, {size / 1e6:,.1f} MB. `manifest.json` has the size and the BLAKE3 hash of each;",
        f"`bafogpt storage pull {url} FOLDER` fetches them and verifies every byte.",
    ]


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""] if lines else []


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A table in Markdown; empty without rows."""
    lines = [f"| {' | '.join(map(_plain, row))} |" for row in rows]
    head = f"| {' | '.join(header)} |" if any(header) else f"|{' |' * len(header)}"
    return [head, f"|{'---|' * len(header)}", *lines] if lines else []


def _plain(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
