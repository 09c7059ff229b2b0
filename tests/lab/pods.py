"""The pods lab: the pod cloud on loopback, the project's image, and a SkyPilot that rents from it as if from RunPod.

Image and podman's storage are those of ``scripts/image``. Unchanged is the image, too: what a site without internet has
to add, a uv that does not download Python, is mounted into each pod.
"""

from __future__ import annotations

import json
import os
import pwd
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tests.lab import packages, processes, skyhome
from tests.lab.config import (
    CACHE,
    PODS,
    ROOT,
    VENV,
    LabError,
    answers,
    need_free,
    outer_environment,
    passed_on,
)
from tests.lab.podcloud.server import KEY_VARIABLE

F = PODS.folder
KEY = "lab-key-of-no-worth"
URL = f"http://127.0.0.1:{PODS.cloud_port}"
LABEL = "bafogpt.lab.pod"


def environment() -> dict[str, str]:
    """What makes ``sky`` and podman see this lab."""
    return PODS.base_environment() | {"RUNPOD_API_BASE_URL": URL} | _engine()


def _engine() -> dict[str, str]:
    """Where ``scripts/image`` keeps its images, as variables for podman."""
    shown = _image("env")
    words = [word for line in shown.splitlines() if line.startswith("export ") for word in shlex.split(line)[1:]]
    return dict(word.split("=", 1) for word in words)


def _image(*words: str, loudly: bool = False) -> str:
    """What ``scripts/image`` prints; ``loudly`` shows what it says meanwhile."""
    done = subprocess.run(
        [str(ROOT / "scripts/image"), *words],
        # images are kept in the account's own home, whatever HOME a test or a lab has set
        env=outer_environment() | {"HOME": pwd.getpwuid(os.geteuid()).pw_dir},
        stdout=subprocess.PIPE,
        stderr=None if loudly else subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise LabError(f"scripts/image {' '.join(words)} failed: {(done.stderr or done.stdout or '').strip()[-300:]}")
    return done.stdout.strip()


def image() -> str:
    """The name of the image that pods run."""
    return _image("name")


def _need_image() -> None:
    """Build the image when it is not there (minutes)."""
    if shutil.which("podman") is None or _podman("image", "exists", image()).returncode:
        print(f"lab: building {image()}", flush=True)
        _image("build", loudly=True)


def _podman(*words: str) -> subprocess.CompletedProcess[str]:
    env = outer_environment() | _engine()
    return subprocess.run(["podman", *words], env=env, capture_output=True, text=True, check=False)


def install() -> None:
    """What a stop leaves on the machine: packages, and the image that pods run.

    Raises:
        UnavailableError: this machine cannot have the lab
    """
    packages.install(packages.PODS)
    _need_image()


def start() -> None:
    """Start what is not running; return when the pod cloud and SkyPilot's server answer.

    Raises:
        UnavailableError: this machine cannot have the lab
        LabError: a part of it did not start
    """
    if is_up():
        return
    install()
    stop()
    need_free(PODS.api_port, PODS.queue_port, PODS.cloud_port)
    PODS.logs.mkdir(parents=True, exist_ok=True)
    (CACHE / "uv-of-pods").mkdir(parents=True, exist_ok=True)
    skyhome.uv_for_machines(F / "site", Path("/usr/bin/python3"))
    skyhome.make(PODS)
    (PODS.home / ".runpod").mkdir(exist_ok=True)
    (PODS.home / ".runpod/config.toml").write_text(f'[default]\napi_key = "{KEY}"\n')
    start_cloud()
    skyhome.start_api_server(PODS, environment())
    skyhome.enable(PODS, environment(), "runpod")
    PODS.ready.touch()


def start_cloud() -> None:
    """Start the API; pods that run already are found again."""
    with (PODS.logs / "podcloud.log").open("a") as log:
        subprocess.Popen(
            [str(VENV / "bin/python"), "-m", "tests.lab.podcloud.server", str(PODS.cloud_port), *_pod_options()],
            cwd=ROOT,
            env=outer_environment() | environment() | {"PYTHONPATH": str(ROOT), KEY_VARIABLE: KEY},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + 60
    while not answers(PODS.cloud_port):
        if time.monotonic() > deadline:
            raise LabError(f"the pod cloud does not answer; look into {PODS.logs}/podcloud.log")
        time.sleep(0.1)


def _pod_options() -> list[str]:
    """What each pod gets beside its image: the site's uv and its cache, and how this machine reaches an index."""
    site = F / "site"
    options = ["--shm-size=1g", f"-v={site}:{site}:ro", f"-v={site}/uv:/root/.local/bin/uv:ro"]
    options += [f"-v={CACHE}/uv-of-pods:{CACHE}/uv-of-pods", f"--env=UV_CACHE_DIR={CACHE}/uv-of-pods"]
    for name, value in passed_on().items():
        if value.startswith("/"):
            if not Path(value).is_file():
                continue  # a folder of this machine is of no use in a pod
            options.append(f"-v={value}:{value}:ro")
        options.append(f"--env={name}={value}")
    return list(dict.fromkeys(options))


def control(wish: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask the pod cloud for a fault or an event, or (None) for its pods and its log; see ``podcloud.server``.

    Raises:
        LabError: the cloud does not understand, with what it says
    """
    body = None if wish is None else json.dumps(wish).encode()
    try:
        with urlopen(Request(f"{URL}/_control", data=body), timeout=120) as answer:  # noqa: S310 - loopback
            state: dict[str, Any] = json.load(answer)
    except HTTPError as error:
        raise LabError(f"the pod cloud on {wish}: {error.read().decode(errors='replace')}") from error
    return state


def is_up() -> bool:
    """Whether the lab was started whole and both its servers still answer."""
    return PODS.ready.exists() and answers(PODS.cloud_port) and answers(PODS.api_port)


def status() -> list[str]:
    """Lines for a person."""
    pods = control()["pods"]
    lines = [f"{pod['id']}  {pod['name']}  {pod['desiredStatus']}  {pod['costPerHr']} $/h" for pod in pods]
    return [URL, *lines]


def _containers() -> list[str]:
    if shutil.which("podman") is None:
        return []
    return _podman("ps", "-aq", "--filter", f"label={LABEL}").stdout.split()


def stop() -> None:
    """Leave nothing: processes, containers, folders. Works on any half of a lab.

    Raises:
        LabError: a process would not go
    """
    PODS.ready.unlink(missing_ok=True)
    if left := processes.end(PODS):
        raise LabError(f"these processes would not end: {'; '.join(map(str, left))}")
    if ids := _containers():
        _podman("kill", *ids)
        _podman("rm", "-f", "-v", *ids)
    shutil.rmtree(f"/tmp/sky_ssh_{PODS.user_hash}", ignore_errors=True)
    shutil.rmtree(F, ignore_errors=True)


def leftovers() -> list[str]:
    """Processes and files that are left of the lab; none after a stop."""
    found = [f"process {process}" for process in processes.of_lab(PODS)]
    found += [f"container {each}" for each in _containers()]
    return found + [f"folder {path}" for path in (F, Path(f"/tmp/sky_ssh_{PODS.user_hash}")) if os.path.exists(path)]
