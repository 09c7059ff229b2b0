"""Import directions: a lower floor never imports an upper one, and the command line starts light."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bafogpt"
FLOORS = (
    *("core", "storage", "folders", "data", "model", "serve", "train"),
    *("runs", "jobs", "reports", "agent", "launch", "cli"),
)
"""From the bottom to the top."""
APART = {"agent", "launch"}
"""The rented machine and yours: they share formats, never code."""
MOST_MODULES, MOST_LINES = 20, 4000
HEAVY = {
    *("babel", "boto3", "botocore", "huggingface_hub", "lightning", "litgpt", "matplotlib"),
    *("bitsandbytes", "mlflow", "numpy", "obstore", "safetensors", "sky", "smart_open", "starlette"),
    *("tensorboard", "tokenizers", "torch", "torchao", "transformers", "uvicorn", "wandb"),
}


@dataclass(frozen=True)
class Import:
    """One import statement, or one call with a module's name in it."""

    module: str
    line: int
    runs_at_import: bool


def imports_of(path: Path, package: Path) -> Iterator[Import]:
    """Everything that a module imports: in functions, under TYPE_CHECKING and through importlib too."""
    folder = ".".join((package.name, *path.relative_to(package).parent.parts))
    yield from _walk(ast.parse(path.read_text(encoding="utf-8")), folder, runs=True)


def _walk(node: ast.AST, folder: str, runs: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, node.lineno, runs)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = folder.split(".")[: len(folder.split(".")) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        for alias in node.names:  # "from bafogpt import cli" imports bafogpt.cli
            yield Import(f"{base}.{alias.name}", node.lineno, runs)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")) and node.args:
        yield Import(_leading_text(node.args[0]), node.lineno, runs)
    for child in ast.iter_child_nodes(node):
        in_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        only_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        yield from _walk(child, folder, runs and not in_function and not only_for_types)


def _leading_text(node: ast.expr) -> str:
    """The constant text that an expression begins with: ``"bafogpt.cli."`` of ``f"bafogpt.cli.{name}"``."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def floor_of(module: str, package: Path) -> int | None:
    """The floor that a dotted name lies on, or None when it is not on any."""
    parts = module.split(".")
    return FLOORS.index(parts[1]) if parts[0] == package.name and len(parts) > 1 and parts[1] in FLOORS else None


def upward_imports(package: Path) -> list[str]:
    """``file:line imports module`` for every import of an upper floor."""
    found = []
    for path in sorted(package.rglob("*.py")):
        here = path.relative_to(package).parts[0]
        own = FLOORS.index(here) if here in FLOORS else -1  # modules of the package itself lie below all floors
        for each in imports_of(path, package):
            floor = floor_of(each.module, package)
            if floor is not None and (floor > own or {FLOORS[floor], here} == APART):
                found.append(f"{path.relative_to(package)}:{each.line} imports {each.module}")
    return found


def heavy_at_start(package: Path) -> list[str]:
    """What cli modules import when they are imported, beyond the standard library, Typer, cli and core."""
    found = []
    for path in sorted((package / "cli").rglob("*.py")):
        for each in imports_of(path, package):
            lower = floor_of(each.module, package) in range(1, FLOORS.index("cli"))
            if each.runs_at_import and (lower or each.module.partition(".")[0] in HEAVY):
                found.append(f"{path.relative_to(package)}:{each.line} imports {each.module}")
    return found


def too_large(package: Path) -> list[str]:
    """Folders with too many modules, and packages with too many lines, those of their folders included."""
    found = []
    for folder in sorted({path.parent for path in package.rglob("*.py")}):
        modules = len(list(folder.glob("*.py")))
        if modules > MOST_MODULES:
            found.append(f"{folder.relative_to(package)}: {modules} modules")
        lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.rglob("*.py"))
        if lines > MOST_LINES and folder != package:
            found.append(f"{folder.relative_to(package)}: {lines} lines")
    return found


def import_cycle(package: Path) -> list[str]:
    """Modules that import one another in a circle, the first found; imports in functions count too."""
    names = {
        ".".join((package.name, *path.relative_to(package).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }
    graph = {name: set(_modules_imported(path, package, names)) - {name} for name, path in names.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def _modules_imported(path: Path, package: Path, names: Container[str]) -> Iterator[str]:
    for each in imports_of(path, package):
        module = each.module
        while module and module not in names:  # from module import name
            module = module.rpartition(".")[0]
        if module and module != package.name:
            yield module


def importers_of_sky(package: Path) -> set[str]:
    return {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any(each.module.split(".")[0] == "sky" for each in imports_of(path, package))
    }


def test_no_package_is_too_large() -> None:
    assert too_large(PACKAGE) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert import_cycle(PACKAGE) == []


def test_one_module_imports_sky() -> None:
    assert importers_of_sky(PACKAGE) == {"launch/engines/skypilot/client.py"}


def test_no_floor_imports_one_above_it() -> None:
    assert upward_imports(PACKAGE) == []


def test_cli_modules_import_nothing_heavy_at_top_level() -> None:
    assert heavy_at_start(PACKAGE) == []


def test_every_package_is_a_floor() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}

    assert packages <= set(FLOORS)


def test_importing_every_cli_module_loads_nothing_heavy() -> None:
    names = sorted(f"bafogpt.cli.{path.stem}" for path in (PACKAGE / "cli").glob("*.py") if path.stem != "__init__")
    script = f"import sys, {', '.join(names)}; print(*sorted({HEAVY!r} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    package = tmp_path / "bafogpt"
    for floor in FLOORS:
        (package / floor).mkdir(parents=True)
        (package / floor / "__init__.py").touch()
    return package


@pytest.mark.parametrize(
    "source",
    [
        "import bafogpt.train.loop",
        "from bafogpt.runs.store import Run",
        "from bafogpt import cli",
        "from ..data import curriculum",
        "from .. import data",
        "def later():\n    import bafogpt.data",
        "if TYPE_CHECKING:\n    from bafogpt.data.prepare import Report",
        "importlib.import_module('bafogpt.cli.main')",
        "importlib.import_module(f'bafogpt.launch.{name}')",
        "__import__('bafogpt.data')",
    ],
)
def test_an_upward_import_is_found(planted: Path, source: str) -> None:
    (planted / "storage" / "bad.py").write_text(source)

    assert [found.split(":")[0] for found in upward_imports(planted)] == ["storage/bad.py"]


@pytest.mark.parametrize(("here", "there"), [("agent", "launch"), ("launch", "agent")])
def test_an_import_between_agent_and_launch_is_found(planted: Path, here: str, there: str) -> None:
    (planted / here / "bad.py").write_text(f"def later():\n    from bafogpt.{there} import plan")

    assert upward_imports(planted) == [f"{here}/bad.py:2 imports bafogpt.{there}.plan"]


def test_a_circle_of_modules_is_found(planted: Path) -> None:
    (planted / "data" / "one.py").write_text("from bafogpt.data import two")
    (planted / "data" / "two.py").write_text("def later():\n    from .three import x")
    assert import_cycle(planted) == []

    (planted / "data" / "three.py").write_text("import bafogpt.data.one")
    assert {each.rpartition(".")[2] for each in import_cycle(planted)} == {"one", "two", "three"}


def test_a_package_that_is_too_large_is_found(planted: Path) -> None:
    deep = planted / "data" / "deep"
    deep.mkdir()
    for number in range(MOST_MODULES - 1):
        (planted / "data" / f"m{number}.py").touch()
    (deep / "long.py").write_text("\n" * MOST_LINES)
    assert too_large(planted) == []

    (planted / "data" / "one_more.py").write_text("x = 1\n")
    assert too_large(planted) == [f"data: {MOST_MODULES + 1} modules", f"data: {MOST_LINES + 1} lines"]


def test_another_import_of_sky_is_found(planted: Path) -> None:
    (planted / "cli" / "bad.py").write_text("def later():\n    from sky import jobs")

    assert importers_of_sky(planted) == {"cli/bad.py"}


@pytest.mark.parametrize(
    "source", ["import bafogpt.core.errors", "from ..core import files", "from . import bucket", "import torch"]
)
def test_a_downward_import_is_allowed(planted: Path, source: str) -> None:
    (planted / "storage" / "good.py").write_text(source)

    assert upward_imports(planted) == []


def test_the_package_itself_imports_no_floor(planted: Path) -> None:
    (planted / "__init__.py").write_text("from bafogpt.core import errors")

    assert len(upward_imports(planted)) == 1


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch", 1),
        ("try:\n    from boto3 import client\nexcept ImportError:\n    pass", 1),
        ("from bafogpt.storage.bucket import Bucket", 1),
        ("class Sink:\n    import numpy", 1),
        ("def command():\n    import torch", 0),
        ("if TYPE_CHECKING:\n    from bafogpt.storage.bucket import Bucket", 0),
        ("from bafogpt.core import settings", 0),
    ],
)
def test_a_heavy_import_at_the_top_of_a_cli_module_is_found(planted: Path, source: str, found: int) -> None:
    (planted / "cli" / "some.py").write_text(source)

    assert len(heavy_at_start(planted)) == found
