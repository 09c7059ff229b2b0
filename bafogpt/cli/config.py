"""``bafogpt config``: the settings in force and who said so. The settings themselves are in ``core.settings``."""

from __future__ import annotations

import typer

from bafogpt.cli.console.options import JsonOption, QuietOption
from bafogpt.cli.console.output import Output

app = typer.Typer(help="The settings in force, and who said so.")


@app.command()
def show(json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Print every setting, its value and where the value comes from."""
    from bafogpt.core import settings

    settings.load()  # refuses a wrong type before it is shown as if it were in force
    records = [{"name": o.name, "value": o.value, "source": o.source} for o in settings.origins()]
    Output.of(json=json, quiet=quiet).rows(records, columns=["name", "value", "source"], id="name")


@app.command()
def path(json: JsonOption = False) -> None:
    """Print the path of your own settings file, whether it exists or not."""
    import os
    from pathlib import Path

    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    file = Path(base) / "bafogpt" / "config.toml"
    Output.of(json=json).result({"path": str(file), "exists": file.is_file()}, text=str(file))
