"""The Typer app of a sub-command, with option groups: a dataclass parameter stands for one option per field.

``def launch(job: JobArgument, options: LaunchFlags, out: Output)`` takes a JOB, every option of ``LaunchFlags``, and
``--json`` and ``--quiet``. Fields without a Typer annotation are no options.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator
from inspect import Parameter
from typing import Any

import typer
from typer.core import TyperCommand

Function = typing.TypeVar("Function", bound=Callable[..., object])


class Command(TyperCommand):
    """Prints ``RUN`` in its usage, where Typer prints ``{RUN}``."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]


class App(typer.Typer):
    """Registers functions as commands, and returns them unchanged."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Function], Function]:
        """As Typer's, and expands option groups."""

        def register(function: Function) -> Function:
            super(App, self).command(name, cls=Command, **settings)(_expanded(function))
            return function

        return register


def _expanded(function: Callable[..., object]) -> Callable[..., object]:
    """``function`` with one parameter per option in place of each option group."""
    own = inspect.signature(function, eval_str=True).parameters
    groups = {name: list(_options(each.annotation)) for name, each in own.items() if _is_group(each.annotation)}

    def command(**values: Any) -> object:
        for name, options in groups.items():
            values[name] = own[name].annotation(**{each.name: values.pop(each.name) for each in options})
        return function(**values)

    nested = (groups.get(name, [each.replace(kind=Parameter.KEYWORD_ONLY)]) for name, each in own.items())
    parameters = [each for options in nested for each in options]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__name__, command.__doc__ = getattr(function, "__name__", ""), function.__doc__
    return command


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def _options(group: Any) -> Iterator[Parameter]:
    hints = typing.get_type_hints(group, include_extras=True)
    for each in dataclasses.fields(group):
        if typing.get_origin(hints[each.name]) is typing.Annotated:
            default = Parameter.empty if each.default is dataclasses.MISSING else each.default
            yield Parameter(each.name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[each.name])
