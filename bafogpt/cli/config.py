"""``bafogpt config``: settings and where each comes from; see :mod:`bafogpt.core.settings`."""

from __future__ import annotations

from bafogpt.cli.console.app import App
from bafogpt.cli.console.output import Output

app = App(help="Show settings and where each comes from.")


@app.command()
def show(out: Output) -> None:
    """Print every setting, its value and where the value comes from."""
    from bafogpt.core import settings

    settings.load()  # refuses a value of the wrong type
    records = [{"name": o.name, "value": o.value, "source": o.source} for o in settings.origins()]
    out.rows(records, columns=["name", "value", "source"], id="name")


@app.command()
def path(out: Output) -> None:
    """Print the path of your own settings file, which may not exist yet."""
    import os
    from pathlib import Path

    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    file = Path(base) / "bafogpt" / "config.toml"
    out.result({"path": str(file), "exists": file.is_file()}, text=str(file), id=str(file))
