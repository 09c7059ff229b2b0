"""The CUDA build of torch with a null GPU, for tests of the GPU path on a machine without a GPU.

torch's and Triton's wheels for CUDA are installed into a cache folder, once for these pins and this ``nullgpu.c``;
everything else comes from the project's environment. No NVIDIA library is installed: ``nullgpu.c`` is compiled with a
stub that returns 0 for each of their functions that torch, bitsandbytes or Triton use, and linked under all their
names.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("nullgpu.c")
CACHE = Path(os.environ.get("BAFOGPT_GPU_PATH_CACHE") or Path.home() / ".cache" / "bafogpt" / "gpu-path")
TRITON = "triton==3.7.1"
"""The version that torch 2.13 requires."""
TIMEOUT_S = 900
_FOREIGN = re.compile(r"_*(?:cu|nv|nccl)[A-Za-z]\w*")
_LIBRARY = re.compile(r"\[(lib(?:cu|nv|nccl)[^\]]*)\]")
_DRIVER = re.compile(r"\bcu[A-Z]\w*")


class UnavailableError(Exception):
    """The build cannot be made on this machine."""


def pins() -> list[str]:
    """The packages to install; ``===`` excludes other builds of a version."""
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    wanted = {name: line for line in constraints for name in ("torch", "liger-kernel") if line.startswith(f"{name}==")}
    return [wanted["torch"].replace("==", "==="), TRITON, wanted["liger-kernel"]]


@dataclass(frozen=True)
class CudaBuild:
    """A folder with the build."""

    folder: Path

    def run(
        self,
        program: str,
        *words: str,
        card: str = "L40",
        processes: int = 1,
        stdin: str = "",
        more: Mapping[str, str] = {},
    ) -> dict[str, Any]:
        """Run ``python -m program words`` on ``card`` as process 0 of several; returns the JSON in its last line.

        Fails the test, with the program's output, if it fails.
        """
        caches = self.folder / "kernels" / card
        torchrun = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "GROUP_RANK": 0}
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("BAFOGPT_", "AWS_", "PYTORCH_"))},
            **{key: str(value) for key, value in torchrun.items()},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "null", "NULLGPU": card},
            "PYTHONPATH": f"{self.folder / 'packages'}:{ROOT}",
            "LD_LIBRARY_PATH": str(self.folder / "lib"),
            "TRITON_LIBCUDA_PATH": str(self.folder / "lib"),
            "TRITON_CACHE_DIR": str(caches / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "PYTORCH_ALLOC_CONF": "expandable_segments:True",
            "PYTHONWARNINGS": "ignore",
            **more,
        }
        done = subprocess.run(
            [sys.executable, "-m", program, *words],
            cwd=ROOT,
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0, f"{program} ended with {done.returncode}:\n{done.stdout}\n{done.stderr[-4000:]}"
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def prepare() -> CudaBuild:
    """The build, made if needed.

    Raises :class:`UnavailableError` without a compiler, or if the packages cannot be installed.
    """
    for tool in ("gcc", "nm", "readelf"):
        if shutil.which(tool) is None:
            raise UnavailableError(f"there is no {tool} here: apt-get install gcc")
    digest = hashlib.sha256("\n".join([*pins(), sys.version, SOURCE.read_text(), Path(__file__).read_text()]).encode())
    folder = CACHE / digest.hexdigest()[:16]
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            packages = _packages()
            for old in CACHE.iterdir():  # of other pins or another nullgpu.c
                if old.is_dir() and old not in (folder, packages.parent):
                    shutil.rmtree(old)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            (folder / "packages").symlink_to(packages)
            _build(packages, folder / "lib")
            (folder / "made").touch()
    return CudaBuild(folder)


def _packages() -> Path:
    """The unpacked wheels, which are kept when ``nullgpu.c`` changes."""
    name = hashlib.sha256("\n".join([*pins(), sys.version]).encode()).hexdigest()[:16]
    packages = CACHE / f"packages-{name}" / "site"
    if not (packages.parent / "made").exists():
        shutil.rmtree(packages.parent, ignore_errors=True)
        options = ["--quiet", "--no-deps", "--no-compile", "--no-input", "--target", str(packages)]
        command = [sys.executable, "-m", "pip", "install", *options, *pins()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnavailableError(
                f"pip could not install {', '.join(pins())}: {done.stderr.strip().splitlines()[-1:]}"
            )
        (packages.parent / "made").touch()
    return packages


def _build(packages: Path, lib: Path) -> None:
    """Compile the null GPU, and link it under the name of each library."""
    lib.mkdir()
    include = packages / "triton" / "backends" / "nvidia" / "include"
    compiler = ["gcc", "-O1", "-fPIC", "-w", "-I", str(include), "-c"]
    subprocess.run([*compiler, str(SOURCE), "-o", str(lib / "nullgpu.o")], check=True)
    written = set(_words(["nm", "-g", "--defined-only", str(lib / "nullgpu.o")]))
    users = [*(packages / "torch" / "lib").glob("*.so"), *_bitsandbytes()]
    wanted = {name for user in users for name in _words(["nm", "-D", "-u", str(user)]) if _FOREIGN.fullmatch(name)}
    wanted |= set(_DRIVER.findall((include / "cuda.h").read_text(errors="replace")))
    stubs = "".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(wanted - written))
    (lib / "stubs.c").write_text(stubs)
    subprocess.run([*compiler, str(lib / "stubs.c"), "-o", str(lib / "stubs.o")], check=True)
    shared = ["gcc", "-shared", "-o", str(lib / "libcuda.so.1"), str(lib / "nullgpu.o"), str(lib / "stubs.o")]
    subprocess.run([*shared, "-ldl", "-lpthread"], check=True)
    names = {name for user in users for line in _lines(["readelf", "-d", str(user)]) for name in _LIBRARY.findall(line)}
    for name in {*names, "libcuda.so", "libnvidia-ml.so.1"} - {"libcuda.so.1"}:
        (lib / name).symlink_to("libcuda.so.1")


def _bitsandbytes() -> Iterable[Path]:
    """bitsandbytes' library for the CUDA version of torch."""
    import bitsandbytes

    return Path(bitsandbytes.__file__).parent.glob("libbitsandbytes_cuda130.so")


def _lines(command: list[str]) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def _words(command: list[str]) -> list[str]:
    """The symbols that ``nm`` lists, without versions."""
    return [line.split()[-1].partition("@")[0] for line in _lines(command) if line.split()]
