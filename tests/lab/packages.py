"""The Debian packages of a lab, installed when they are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.lab.config import UnavailableError

SLURM = ("slurmctld", "slurmd", "slurm-client", "munge", "openssh-server", "rsync")
PODS = ("slirp4netns", "openssh-client", "rsync")
"""and podman, which ``scripts/image`` installs"""

POLICY = Path("/usr/sbin/policy-rc.d")
"""Debian's hook: while it answers 101, a package's service is not started."""


def why_not() -> str | None:
    """Why this machine cannot have a lab, or None."""
    if sys.platform != "linux":
        return "a lab needs Linux"
    if os.geteuid() != 0:
        return "a lab needs root: it starts daemons, containers and mounts"
    if shutil.which("apt-get") is None:
        return "a lab needs apt-get to install Slurm, podman and an ssh server"
    return None


def missing(packages: Sequence[str]) -> list[str]:
    """Those of ``packages`` that are not installed."""
    query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *packages]
    known = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    return [package for package in packages if f"{package} installed" not in known]


def install(packages: Sequence[str]) -> None:
    """Install what is missing, without starting any service that comes with it.

    Raises:
        UnavailableError: this machine cannot have a lab
    """
    if reason := why_not():
        raise UnavailableError(reason)
    wanted = missing(packages)
    if not wanted:
        return
    print(f"lab: installing {' '.join(wanted)}", flush=True)
    ours = not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        apt = ["apt-get", "-o", "DPkg::Lock::Timeout=900", "-qq"]
        _run([*apt, "update"])
        _run([*apt, "install", "-y", "--no-install-recommends", *wanted])
    finally:
        if ours:
            POLICY.unlink(missing_ok=True)


def _run(words: list[str]) -> None:
    done = subprocess.run(
        words, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UnavailableError(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()[-500:]}")
