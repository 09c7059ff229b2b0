"""A HOME for SkyPilot: what is configured, where it may rent, at which prices, and an ssh that reads this HOME.

The user's ``~/.sky`` is neither read nor written. Prices come from ``catalog``, a few rows in SkyPilot's columns;
without them the first GPU that is asked for would be looked up on the internet.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.request import urlopen

from tests.lab.config import CACHE, HERE, VENV, LabConfig, LabError, outer_environment

CONFIG = """\
jobs:
  controller:
    consolidation_mode: true  # managed jobs are controlled by the API server itself, not by one more machine
"""
PLUGINS = """\
plugins:
  - class: bafogpt_lab_plugin.Loopback
"""
SSH = """\
#!/bin/sh
# ssh reads the configuration, and every ~ in it, of the account; here it is that of $HOME, where SkyPilot writes
new="$HOME/.ssh/.config.$$"
sed -e '/^Include /d' -e "s#~/#$HOME/#g" "$HOME/.ssh/config" "$HOME"/.sky/generated/ssh/* >"$new" 2>/dev/null
mv "$new" "$HOME/.ssh/config.here"
exec {tool} -F "$HOME/.ssh/config.here" "$@"
"""
UV = """\
#!/bin/sh
# SkyPilot's runtime asks for Python 3.10 by version, which uv would download; a site without internet has this one.
# Files are taken from the cache by reference, else each machine would copy some 200 MB.
for word; do shift; [ "$word" = 3.10 ] && word={python}; set -- "$@" "$word"; done
UV_LINK_MODE=symlink UV_PYTHON_DOWNLOADS=never exec {uv} "$@"
"""


def make(config: LabConfig, sky_config: str = "") -> None:
    """Write ``config.home`` anew, with ``sky_config`` added to SkyPilot's configuration."""
    home = config.home
    for folder in (".sky", ".ssh", "bin"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    (home / ".ssh").chmod(0o700)
    (home / ".ssh/config").touch()
    (home / ".sky/config.yaml").write_text(CONFIG + sky_config)
    (home / ".sky/plugins.yaml").write_text(PLUGINS)
    (home / ".sky/user_hash").write_text(config.user_hash)
    shutil.copytree(HERE / "catalog", home / ".sky/catalogs" / _catalog_version(), dirs_exist_ok=True)
    for tool in ("ssh", "scp", "sftp"):
        script(home / "bin" / tool, SSH.format(tool=f"/usr/bin/{tool}"))


def _catalog_version() -> str:
    """The folder that this SkyPilot reads prices from, without importing it for two seconds."""
    constants = Path(sysconfig.get_path("purelib")) / "sky/skylet/constants.py"
    for line in constants.read_text(encoding="utf-8").splitlines():
        if line.startswith("CATALOG_SCHEMA_VERSION"):
            return line.split("'")[1]
    raise LabError(f"{constants} names no CATALOG_SCHEMA_VERSION: is this another SkyPilot?")


def script(path: Path, text: str) -> None:
    """An executable file."""
    path.write_text(text)
    path.chmod(0o755)


def uv_for_machines(folder: Path, python: Path) -> None:
    """``folder/uv``: what SkyPilot finds on a machine of the lab instead of downloading its installer."""
    folder.mkdir(parents=True, exist_ok=True)
    real = VENV / "bin/uv"
    if not real.exists():  # from an environment that was made before uv became a dependency
        real = CACHE / "tool/bin/uv"
        if not real.exists():
            pip = [str(VENV / "bin/python"), "-m", "pip", "install", "-q", "-c", "constraints.txt"]
            subprocess.run([*pip, "--target", str(CACHE / "tool"), "uv"], cwd=HERE.parents[1], check=True)
    shutil.copy2(real, folder / "uv.real")
    script(folder / "uv", UV.format(python=python, uv=folder / "uv.real"))


def start_api_server(config: LabConfig, environment: Mapping[str, str]) -> None:
    """Start SkyPilot's API server on the lab's port, and wait until it answers."""
    words = [str(VENV / "bin/sky"), "api", "start"]
    done = subprocess.run(
        words,
        env=outer_environment() | dict(environment),
        cwd=config.home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    (config.logs / "sky-api-start.log").write_text(done.stdout + done.stderr)
    # the client has less patience than a busy machine needs to import it all
    if done.returncode and not _answers_health(config, 120):
        log = config.home / ".sky/api_server/server.log"
        said = log.read_text(errors="replace") if log.exists() else done.stdout + done.stderr
        raise LabError(f"SkyPilot's API server did not start: {said.strip()[-800:]}")


def enable(config: LabConfig, environment: Mapping[str, str], cloud: str, timeout_s: float = 240) -> None:
    """Check the cloud until SkyPilot takes it for usable, which it remembers.

    Its own first check, in the middle of a launch, is made once, and on a busy machine it gives up too soon.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        done = subprocess.run(
            [str(VENV / "bin/sky"), "check", cloud],
            env=outer_environment() | dict(environment) | {"NO_COLOR": "1"},
            cwd=config.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0 and "Enabled infra" in done.stdout:
            return
        if time.monotonic() > deadline:
            raise LabError(f"SkyPilot does not enable {cloud}: {(done.stdout + done.stderr).strip()[-800:]}")
        time.sleep(1)


def _answers_health(config: LabConfig, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{config.api_port}/api/health", timeout=10):
            return True
        time.sleep(1)
    return False
