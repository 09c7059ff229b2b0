"""The model card, a repository's README.md: known facts are filled in, others are marked to be filled in.

It is written from a folder's metadata by the template ``card.md.jinja``. Besides the facts of the table below, these
are known, all of them optional::

    base_model       the Hub's name of the model that training began with; empty where there is none
    license          the Hub's name of the licence; without one that of a Gemma, else to be filled in
    adapter          true for an adapter, which is loaded with its base
    picture          name of a picture of the loss, beside the card
    data             digest, tokenizer; stages: [{name, tokens, documents, languages}]
    hyperparameters  {name: value}
    evaluation       step, loss (nats per token), bpb (bits per byte); stages and languages: {name: {loss, bpb}}
    cost             hours, usd, machines
    code             {name: value}: versions, commit, image

:mod:`bafogpt.reports.model_card` collects them from a run's records.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bafogpt.core import terms

CARD = "README.md"
MARK = "<!-- written by bafogpt; remove this line to keep your edits: bafogpt then never rewrites the card -->"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
_UPSTREAM = {"gemma": "google"}
"""The organisation on the Hub that publishes a family of models."""
_FACTS = {
    "run": "Run",
    "step": "Optimizer steps",
    "samples": "Training samples",
    "tokens": "Training tokens",
    "dataset": "Dataset",
    "sequence_length": "Sequence length",
    "precision": "Precision",
}
_Rows = list[tuple[Any, ...]]
WORD = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""What the header may contain: a licence, or a repository's name."""


def is_ours(text: bytes) -> bool:
    """Whether the card was written by :func:`write`, and not by a person since."""
    return MARK.encode() in text


def write(url: str, metadata: Mapping[str, Any], files: int, size: int) -> bytes:
    """A card for the folder ``url`` (``hf://ORG/NAME``, ``s3://…``) of ``files`` files and ``size`` bytes. The section
    about files is left out where ``files`` is 0."""
    import jinja2

    base = base_model(metadata)
    licence = str(metadata.get("license") or terms.licence_of(base))
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = jinja2.Environment(**options)  # noqa: S701 - the result is Markdown, not HTML
    environment.filters["cell"] = _cell
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        **{key: metadata.get(key) for key in ("adapter", "tuned", "picture", "evaluation", "hyperparameters", "code")},
        url=url,
        mark=MARK,
        terms=terms,
        base=base,
        licence=licence,
        is_licence_known=bool(WORD.fullmatch(licence)),
        training=_training(metadata),
        scores=_scores(metadata.get("evaluation") or {}),
        data=_data(metadata.get("data") or {}),
        files=files,
        size=size,
    )
    return (text.rstrip() + "\n").encode()


def base_model(metadata: Mapping[str, Any]) -> str:
    """The Hub's name of the model that training began with; empty when it is unknown."""
    if isinstance(metadata.get("base_model"), str):
        return str(metadata["base_model"])
    name = str(metadata.get("model") or "")
    organisation = _UPSTREAM.get(name.lower().partition("-")[0])
    return f"{organisation}/{name.lower()}" if organisation else ""


def _training(metadata: Mapping[str, Any]) -> _Rows:
    """The training facts and the run's cost."""
    known = dict(metadata)
    if isinstance(known.get("samples"), int) and isinstance(known.get("sequence_length"), int):
        known.setdefault("tokens", known["samples"] * known["sequence_length"])
    rows: _Rows = [(label, known[name]) for name, label in _FACTS.items() if known.get(name) is not None]
    cost = metadata.get("cost") or {}
    if cost.get("machines"):
        rows.append(("Machines", cost["machines"]))
    if cost.get("hours") is not None:
        rows.append(("Hours", f"{cost['hours']:,.2f}"))
    if cost.get("usd"):
        rows.append(("Cost", f"${cost['usd']:,.2f}"))
    return rows


def _scores(found: Mapping[str, Any]) -> _Rows:
    """Loss and bits per byte: of all held-out text, by stage, by language."""
    parts = {"all": found, **(found.get("stages") or {}), **(found.get("languages") or {})}
    return [
        (name, *("–" if (score := each.get(key)) is None else f"{score:.4f}" for key in ("loss", "bpb")))
        for name, each in parts.items()
    ]


def _data(found: Mapping[str, Any]) -> dict[str, _Rows]:
    """The digests of the dataset and its tokenizer, and its stages."""
    labels = (("digest", "Manifest"), ("tokenizer", "Tokenizer"))
    facts: _Rows = [(label, f"`{found[key]}`") for key, label in labels if found.get(key)]
    stages: _Rows = [
        (each["name"], each["tokens"], each["documents"], ", ".join(each.get("languages") or ()) or "–")
        for each in found.get("stages") or ()
    ]
    return {"facts": facts, "stages": stages}


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
