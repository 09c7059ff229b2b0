"""The model card, a repository's README.md: what is known is filled in, what only a person knows is marked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def is_ours(text: bytes) -> bool:
    """Whether the card was written here, and not by a person since."""
    return MARK.encode() in text


def write(repo: str, metadata: Mapping[str, Any], files: int, size: int) -> bytes:
    """A card for ``repo`` (``ORG/NAME``) of ``files`` files and ``size`` bytes, from what the manifest knows."""
    base = base_model(metadata)
    header = [
        "---",
        "language:",
        "- zu",
        "license: other",
        "license_name: to-be-filled-in",
        *([f"base_model: {base}"] if base else []),
        "pipeline_tag: text-generation",
        "tags:",
        "- isizulu",
        "- bafogpt",
        "---",
    ]
    known = {**metadata}
    if isinstance(known.get("samples"), int) and isinstance(known.get("sequence_length"), int):
        known.setdefault("tokens", known["samples"] * known["sequence_length"])
    facts = [f"| {label} | {_plain(known[name])} |" for name, label in _FACTS.items() if known.get(name) is not None]
    origin = f"Continued pretraining of [{base}](https://huggingface.co/{base})" if base else "A language model"
    body = [
        MARK,
        "",
        f"# {repo.partition('/')[2]}",
        "",
        f"{origin} for isiZulu, trained with bafogpt.",
        "",
        "**Licence: to be filled in.** It must allow what the licence of the base model and those of the texts allow.",
        "",
        *(["## Training", "", "| | |", "|---|---|", *facts, ""] if facts else []),
        "## Files",
        "",
        f"{files} files, {size / 1e6:,.1f} MB. `manifest.json` has the size and the BLAKE3 hash of each;",
        f"`bafogpt storage pull hf://{repo} FOLDER` fetches them and verifies every byte.",
        "",
    ]
    return "\n".join([*header, "", *body]).encode()


def base_model(metadata: Mapping[str, Any]) -> str:
    """The Hub's name of the model that training began with; empty when it is not known."""
    if isinstance(metadata.get("base_model"), str):
        return str(metadata["base_model"])
    name = str(metadata.get("model") or "")
    organisation = _UPSTREAM.get(name.lower().partition("-")[0])
    return f"{organisation}/{name.lower()}" if organisation else ""


def _plain(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
