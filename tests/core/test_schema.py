"""Strict configuration: what is not known, not of the right type or not possible is refused by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from bafogpt.core import schema
from bafogpt.core.errors import ConfigError, ExitCode


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    mode: Literal["fast", "slow"] = "fast"


@dataclass(frozen=True, kw_only=True)
class Outer:
    size: int
    inner: Inner = field(default_factory=Inner)
    names: list[str] = field(default_factory=list)
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size is {self.size}; 0 or more")


def refused(values: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        schema.build(Outer, values, where="job.yaml")
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.hint
    return caught.value.message


def test_values_are_built_and_come_back_the_same():
    values = {"size": 3, "inner": {"rate": "1e-4", "mode": "slow"}, "names": ["a"], "limit": None}
    built = schema.build(Outer, values, where="job.yaml")
    assert built == Outer(size=3, inner=Inner(rate=1e-4, mode="slow"), names=["a"])
    assert schema.build(Outer, schema.to_dict(built), where="again") == built


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": 1, "iner": {}}, "unknown key 'iner' (did you mean 'inner'?)"),
        ({"size": 1, "inner": {"rat": 1}}, "unknown key 'inner.rat' (did you mean 'rate'?)"),
        ({}, "'size' is missing"),
        ({"size": "many"}, "'size' is 'many', expected a whole number"),
        ({"size": True}, "expected a whole number"),
        ({"size": 1.5}, "expected a whole number"),
        ({"size": 1, "inner": {"mode": "fest"}}, "one of fast, slow (did you mean 'fast'?)"),
        ({"size": 1, "inner": 4}, "'inner' is 4, expected a mapping"),
        ({"size": 1, "names": "a"}, "expected a list"),
        ({"size": 1, "names": [1]}, "'names[0]' is 1, expected text"),
        ({"size": -1}, "size is -1; 0 or more"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, object], said: str):
    assert said in refused(values)


def test_mappings_merge_key_by_key_and_lists_are_replaced():
    base = {"a": {"x": 1, "y": 2}, "b": [1, 2]}
    assert schema.merge(base, {"a": {"y": 3}, "b": [9]}) == {"a": {"x": 1, "y": 3}, "b": [9]}
    assert base == {"a": {"x": 1, "y": 2}, "b": [1, 2]}


def test_an_assignment_is_read_as_yaml():
    assert schema.parse_assignment("train.seed=7") == {"train": {"seed": 7}}
    assert schema.parse_assignment("a.b={c: [1, x]}") == {"a": {"b": {"c": [1, "x"]}}}


@pytest.mark.parametrize("text", ["train.seed", "=7", "a..b=1", "a={"])
def test_a_bad_assignment_is_refused(text: str):
    with pytest.raises(ConfigError, match="--set"):
        schema.parse_assignment(text)


def test_bad_yaml_names_file_and_line(tmp_path: Path):
    file = tmp_path / "job.yaml"
    file.write_text("a: 1\nb: [1,\n")
    with pytest.raises(ConfigError, match=r"job\.yaml line 3"):
        schema.load_yaml(file)
    file.write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        schema.load_yaml(file)
    file.write_text("- a\n")
    with pytest.raises(ConfigError, match="not a mapping"):
        schema.load_yaml(file)
