"""Planted secrets are searched for wherever others could read them, during the run and after it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.lab import pods
from tests.lab.config import outer_environment
from tests.lab.rented import LONG, Rented

pytestmark = pytest.mark.slow

NOBODY = 65534
SCAN = """
import os, sys
signs = [each.encode() for each in sys.stdin.read().split()]
def look(path):
    try:
        data = open(path, "rb").read(64 << 20)
    except OSError:
        return
    for number, sign in enumerate(signs):
        if sign in data:
            print(number, path)
own = str(os.getpid())
for pid in filter(str.isdigit, os.listdir("/proc")):
    if pid != own:
        look(f"/proc/{pid}/cmdline")
        look(f"/proc/{pid}/environ")
for root in sys.argv[1:]:
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                look(path)
"""
"""Which of the signs on standard input stand in processes' words and variables, and in files below the folders: as far
as whoever runs this may read them."""


@pytest.fixture
def planted(rented: Rented) -> dict[str, str]:
    """Name and value of all that is secret here; the keys of S3 are those of the session's server."""
    rented.environment["HF_TOKEN"] = f"hf_planted{os.urandom(12).hex()}"
    names = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN")
    return {name: rented.environment[name] for name in names} | {"RUNPOD_API_KEY": pods.KEY}


def found(signs: dict[str, str], output: str) -> set[tuple[str, str]]:
    names = list(signs)
    lines = [line.partition(" ") for line in output.splitlines() if line[:1].isdigit()]
    return {(names[int(number)], path) for number, _, path in lines}


def scan(signs: dict[str, str], *folders: Path, uid: int = 0) -> set[tuple[str, str]]:
    done = subprocess.run(
        ["/usr/bin/python3", "-c", SCAN, *map(str, folders)],
        input="\n".join(signs.values()),
        capture_output=True,
        text=True,
        check=True,
        user=uid,
        group=uid,
        extra_groups=[],
        cwd="/",
        env={},
    )
    return found(signs, done.stdout)


def scan_pod(rented: Rented, name: str, signs: dict[str, str], user: str) -> set[tuple[str, str]]:
    (pod,) = rented.pods(name)
    roots = ("/root", "/home", "/tmp", "/etc", "/var", "/run", "/dev/shm", "/workspace")
    words = ["podman", "exec", "-i", "--user", user, f"bafogpt-lab-{pod['id']}", "python3", "-c", SCAN, *roots]
    done = subprocess.run(
        words,
        input="\n".join(signs.values()),
        env=outer_environment() | dict(rented.lab.environment),
        capture_output=True,
        text=True,
        check=True,
    )
    return found(signs, done.stdout)


def words_of_processes(signs: dict[str, str]) -> set[tuple[str, str]]:
    """Signs in the command line of any process of this machine, the pods' included."""
    hits = scan(signs)
    return {(name, Path(path).read_text()[:80]) for name, path in hits if path.endswith("/cmdline")}


def in_bucket(rented: Rented, name: str, signs: dict[str, str]) -> set[tuple[str, str]]:
    folder = rented.store.folder(name)
    held = {info.path: folder.get(info.path) for info in folder.list("")}
    assert any(path.startswith("logs/") for path in held) and "run.json" in held
    return {(key, path) for path, data in held.items() for key, value in signs.items() if value.encode() in data}


def of_a_managed_job(home: Path, path: str) -> bool:
    """Whether SkyPilot's controller keeps a job there, secrets and all: other tests' jobs, which have the same keys."""
    return path.startswith((f"{home}/.sky/spot_jobs.db", f"{home}/.sky/managed_jobs/"))


def test_secrets_are_where_the_job_needs_them_and_nowhere_else(
    rented: Rented, name: str, planted: dict[str, str]
) -> None:
    home = Path(rented.environment["HOME"])
    dry = rented.command(*rented.words(name, "--dry-run"))
    assert not [key for key, value in planted.items() if value in dry.stdout + dry.stderr]

    launched = rented.launch(name, "-d", **LONG)
    rented.until_step(name, 2)

    assert not [key for key, value in planted.items() if value in launched.stdout + launched.stderr]
    here = scan(planted, home / ".sky", home / "sky_logs", home / ".ssh", rented.folder, uid=0)
    files = {hit for hit in here if not hit[1].startswith("/proc/")}
    others = scan(planted, home, rented.folder, Path("/tmp"), uid=NOBODY)
    (pod,) = rented.pods(name)
    env = outer_environment() | dict(rented.lab.environment)
    shown = subprocess.run(
        ["podman", "inspect", f"bafogpt-lab-{pod['id']}"], env=env, capture_output=True, text=True, check=True
    ).stdout
    inspected = {key for key, value in planted.items() if value in shown}
    root, user = (scan_pod(rented, name, planted, who) for who in ("root", "bafogpt"))
    environment = rented.inside(name, "cat /etc/environment /etc/profile.d/* /root/.bashrc 2>/dev/null; env")
    report = {
        "command lines": words_of_processes(planted),
        "files of the client": files,
        "another user here": others,
        "podman inspect": inspected,
        "root in the pod": {hit for hit in root if not hit[1].startswith("/proc/")},
        "another user in the pod": user,
        "bucket": in_bucket(rented, name, planted),
    }
    for where, hits in report.items():
        print(f"{where}:", *sorted(map(str, hits)), sep="\n    ")
    rented.command("cloud", "down", name)
    after = {hit for hit in scan(planted, home / ".sky", home / "sky_logs", rented.folder) if "/proc/" not in hit[1]}
    print("after the end:", *sorted(map(str, after)), sep="\n    ")

    own = {("RUNPOD_API_KEY", str(home / ".runpod/config.toml"))}
    assert not report["command lines"]
    assert not report["podman inspect"]
    assert not report["bucket"]
    assert not report["another user in the pod"]
    assert not others - own
    assert not {key for key, value in planted.items() if value in environment}
    left = {hit for hit in files | after if hit[0] != "RUNPOD_API_KEY"}
    assert not {hit for hit in left if not of_a_managed_job(home, hit[1]) or hit[0] == "HF_TOKEN"}
    assert home.joinpath(".sky").stat().st_mode & 0o777 == 0o700
