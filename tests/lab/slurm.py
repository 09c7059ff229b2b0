"""A Slurm cluster on loopback: n1 and n2 with four L40, n3 with two A10, behind a login node that is an sshd.

Each node is a slurmd in mount and UTS namespaces of its own: it has its own hostname, temporary folder and /etc/hosts,
so the machine's own /etc/hosts is never written. GPUs are plain files, which is all that Slurm asks of a device. Jobs
run as a user that the lab makes and removes. ``bafogpt`` is on every job's PATH, as it is in the image: the project's
virtual environment, made visible on the nodes even where it, or its interpreter, lies in a folder that is root's alone.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab import packages, processes, skyhome
from tests.lab.config import (
    CACHE,
    ROOT,
    SLURM,
    SLURM_CONTROL_PORT,
    VENV,
    LabError,
    answers,
    need_free,
    outer_environment,
    passed_on,
)

USER = "bafogpt-lab"
NODES = {"n1": ("L40", 4), "n2": ("L40", 4), "n3": ("A10", 2)}  # SkyPilot reads one type of GPU a node
CPUS, MEMORY_MB = 32, 131072
F = SLURM.folder
SSHD_RUN = Path("/run/sshd")

SLURM_CONF = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={port}
SlurmctldPidFile={f}/run/slurmctld.pid
SlurmctldLogFile={f}/log/slurmctld.log
StateSaveLocation={f}/state
SlurmdPidFile={f}/run/slurmd.%n.pid
SlurmdLogFile={f}/log/slurmd.%n.log
SlurmdSpoolDir={f}/spool.%n
AuthType=auth/munge
AuthInfo=socket={f}/munge/socket
CommunicationParameters=NoAddrCache,NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
InactiveLimit=0
KillWait=5
MinJobAge=60
SlurmctldTimeout=60
SlurmdTimeout=60
TaskProlog={f}/task-prolog
PartitionName=gpus Nodes=ALL Default=YES MaxTime=7-00:00:00 DefaultTime=1-00:00:00 State=UP
"""
SSHD_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {f}/keys/host
PidFile {f}/run/sshd.pid
AllowUsers {user}
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PrintMotd no
MaxSessions 200
MaxStartups 100:30:200
SetEnv SLURM_CONF={f}/slurm.conf
Subsystem sftp internal-sftp
"""
NODE = """\
#!/bin/sh
# A node of the lab, started in namespaces of its own: node NAME
set -e
hostname "$1"
mount --bind {f}/tmp.$1 {f}/tmp
mount --bind {f}/hosts /etc/hosts
{views}exec slurmd -N "$1"
"""
TASK_PROLOG = """\
#!/bin/sh
# What a step prints here becomes its environment. A cluster of SkyPilot is a job with a home of its own.
home={f}/users/.sky_clusters/$SLURM_JOB_NAME
case $SLURM_JOB_NAME in
*[!A-Za-z0-9._-]* | '') ;;
*) if [ -d "$home" ] && [ ! -e "$home/.local/bin/uv" ]; then
    mkdir -p "$home/.local/bin" && ln -sf {f}/site/uv "$home/.local/bin/uv"
  fi ;;
esac
cat {f}/node-environment
"""
CONFIG = """\
slurm:
  cluster_configs:
    lab:
      tmpdir: {f}/tmp
"""
SSH_HOST = """\
Host lab
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile {f}/keys/login
    IdentitiesOnly yes
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
"""


def environment() -> dict[str, str]:
    """What makes ``sky`` and Slurm's own commands talk to this lab."""
    return SLURM.base_environment() | {"SLURM_CONF": str(F / "slurm.conf")}


def install() -> None:
    """What a stop leaves on the machine: packages, with the users that they make.

    Raises:
        UnavailableError: this machine cannot have the lab
    """
    packages.install(packages.SLURM)


def start() -> None:
    """Start what is not running; return when three nodes are idle and SkyPilot's server answers.

    Raises:
        UnavailableError: this machine cannot have the lab
        LabError: a part of it did not start
    """
    if is_up():
        return
    install()
    stop()
    need_free(
        SLURM.api_port,
        SLURM.queue_port,
        SLURM.cloud_port,
        *range(SLURM_CONTROL_PORT, SLURM_CONTROL_PORT + len(NODES) + 1),
    )
    _write_files()
    _start_daemons()
    skyhome.make(SLURM, CONFIG.format(f=F))
    (SLURM.home / ".slurm").mkdir(exist_ok=True)
    (SLURM.home / ".slurm/config").write_text(SSH_HOST.format(port=SLURM.cloud_port, user=USER, f=F))
    skyhome.start_api_server(SLURM, environment())
    everywhere = ["srun", "--chdir=/", f"--nodes={len(NODES)}", "--immediate=5", "hostname"]
    _wait("the nodes run nothing", lambda: sorted(_answer(everywhere).split()) == sorted(NODES), 120)
    skyhome.enable(SLURM, environment(), "slurm")
    SLURM.ready.touch()


def is_up() -> bool:
    """Whether the lab was started whole and its daemons still answer."""
    states = _answer(["sinfo", "-hN", "-o", "%t"]).split() if SLURM.ready.exists() else []
    usable = [state for state in states if state.rstrip("*~#!%$@^-+") in ("idle", "mix", "alloc", "comp")]
    return len(usable) == len(NODES) and answers(SLURM.cloud_port) and answers(SLURM.api_port)


def status() -> list[str]:
    """Lines for a person."""
    lines = _answer(["sinfo", "-hN", "-o", "%N  %t  %G"]).splitlines()
    return lines + [f"job {line}" for line in _answer(["squeue", "-h", "-o", "%i  %j  %T"]).splitlines()]


def stop() -> None:
    """Leave nothing: processes, the user, mounts, folders. Works on any half of a lab.

    Raises:
        LabError: a process would not go
    """
    SLURM.ready.unlink(missing_ok=True)
    uid = _uid()
    if left := processes.end(SLURM, uid, USER):
        raise LabError(f"these processes would not end: {'; '.join(map(str, left))}")
    if uid is not None:
        Path(f"/tmp/uv_cache_{uid}").unlink(missing_ok=True)
        subprocess.run(["userdel", USER], capture_output=True, check=False)
    if (F / "made-run-sshd").exists():
        with contextlib.suppress(OSError):
            SSHD_RUN.rmdir()
    shutil.rmtree(f"/tmp/sky_ssh_{SLURM.user_hash}", ignore_errors=True)
    shutil.rmtree(F, ignore_errors=True)


def leftovers() -> list[str]:
    """Processes and files that are left of the lab; none after a stop."""
    found = [f"process {process}" for process in processes.of_lab(SLURM, _uid(), USER)]
    found += [f"mount {line}" for line in Path("/proc/mounts").read_text().splitlines() if str(F) in line]
    found += [f"folder {path}" for path in (F, Path(f"/tmp/sky_ssh_{SLURM.user_hash}")) if path.exists()]
    return found + ([f"user {USER}"] if _uid() is not None else [])


def _uid() -> int | None:
    try:
        return pwd.getpwnam(USER).pw_uid
    except KeyError:
        return None


def _write_files() -> None:
    """Everything but the HOME: configuration, keys, the user, the site's software."""
    for name in ("run", "log", "state", "munge", "keys", "site", "dev", "tmp", "users/.ssh"):
        (F / name).mkdir(parents=True, exist_ok=True)
    for node in NODES:
        (F / f"tmp.{node}").mkdir(exist_ok=True)
        (F / f"tmp.{node}").chmod(0o1777)
    subprocess.run(
        ["useradd", "--system", "-M", "-d", str(F / "users"), "-s", "/bin/bash", "-p", "*", USER], check=True
    )
    for key in ("host", "login"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(F / "keys" / key)], check=True)
    shutil.copy(F / "keys/login.pub", F / "users/.ssh/authorized_keys")
    uid = _uid()
    assert uid is not None
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / "uv").mkdir(exist_ok=True)
    Path(f"/tmp/uv_cache_{uid}").symlink_to(CACHE / "uv")  # where SkyPilot makes uv keep its cache on a Slurm node
    for tree in (F / "users", CACHE / "uv"):
        subprocess.run(["chown", "-RhH", str(uid), str(tree)], check=True)
    (F / "users/.ssh").chmod(0o700)
    (F / "munge/key").write_bytes(os.urandom(1024))
    (F / "munge/key").chmod(0o600)
    _write_slurm_configuration()
    (F / "sshd_config").write_text(SSHD_CONFIG.format(f=F, port=SLURM.cloud_port, user=USER))
    skyhome.uv_for_machines(F / "site", _site_python())
    skyhome.script(F / "node", NODE.format(f=F, views=_views()))
    skyhome.script(F / "task-prolog", TASK_PROLOG.format(f=F))
    _write_node_environment(uid)


def _write_slurm_configuration() -> None:
    host = socket.gethostname().split(".")[0]
    conf = SLURM_CONF.format(f=F, host=host, port=SLURM_CONTROL_PORT)
    gres = ""
    for number, (node, (gpu, count)) in enumerate(NODES.items(), start=1):
        conf += (
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={SLURM_CONTROL_PORT + number}"
            f" CPUs={CPUS} RealMemory={MEMORY_MB} Gres=gpu:{gpu}:{count} State=UNKNOWN\n"
        )
        gres += f"NodeName={node} Name=gpu Type={gpu} File={F}/dev/gpu[0-{count - 1}]\n"
        for gpu_number in range(count):
            (F / f"dev/gpu{gpu_number}").touch()
    # a partition may be defined only after its nodes
    lines = conf.splitlines(keepends=True)
    lines.sort(key=lambda line: line.startswith("PartitionName"))
    (F / "slurm.conf").write_text("".join(lines))
    (F / "gres.conf").write_text(gres)
    names = "".join(f"127.0.0.1 {node}\n" for node in NODES)
    # another cluster's nodes may have the same names
    others = [line for line in Path("/etc/hosts").read_text().splitlines() if not NODES.keys() & set(line.split())]
    (F / "hosts").write_text("\n".join(others) + "\n" + names)


def _site_python() -> Path:
    """The Python that the nodes give SkyPilot's runtime: before 3.12 where there is one."""
    for name in ("python3.10", "python3.11", "python3.12", "python3.13", "python3"):
        if (path := Path("/usr/bin") / name).exists():
            return path.resolve()
    return Path(sys.executable).resolve()


def _write_node_environment(uid: int) -> None:
    lines = [f"export PATH={VENV}/bin:{F}/site:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"]
    lines += [f"export {name}={value}" for name, value in passed_on().items()]
    path = F / "node-environment"
    path.write_text("\n".join(lines) + "\n")
    os.chown(path, uid, -1)  # an index's address may hold a password
    path.chmod(0o400)


def _views() -> str:
    """Shell lines that show a node the project and its interpreter although root's folders hide them.

    Over the outermost folder that others may not enter comes an empty one, and in it, at the old path, what is needed.
    """
    needed = {ROOT, Path(sys.base_prefix), Path(sys.executable).resolve().parents[1]}
    hidden: dict[Path, list[Path]] = {}
    for path in sorted(needed):
        closed = [folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001]
        if closed:
            hidden.setdefault(closed[0], []).append(path)
    lines = []
    for number, (folder, paths) in enumerate(hidden.items()):
        for part, path in enumerate(paths):
            stage = F / f"stage.{number}.{part}"
            stage.mkdir(exist_ok=True)
            lines.append(f"mount --bind {shlex.quote(str(path))} {stage}\n")
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(folder))}\n")
        for part, path in enumerate(paths):
            where = shlex.quote(str(path))
            lines.append(f"mkdir -p {where}\nmount --bind {F}/stage.{number}.{part} {where}\n")
    return "".join(lines)


def _start_daemons() -> None:
    if not SSHD_RUN.exists():
        SSHD_RUN.mkdir()
        (F / "made-run-sshd").touch()
    munge = [
        f"--{name}={F}/munge/{name.removesuffix('-file')}" for name in ("key-file", "pid-file", "log-file", "seed-file")
    ]
    _run(["munged", "--force", f"--socket={F}/munge/socket", *munge])
    _run(["slurmctld", "-c"])  # -c: nothing of an earlier cluster
    for node in NODES:
        _run(["unshare", "--mount", "--uts", str(F / "node"), node])
    _run(["/usr/sbin/sshd", "-f", str(F / "sshd_config"), "-E", str(F / "log/sshd.log")])
    _wait("the login node does not answer", lambda: answers(SLURM.cloud_port), 120)


def _run(words: list[str]) -> None:
    done = subprocess.run(words, env=outer_environment() | environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(words)}: {(done.stdout + done.stderr).strip()[-500:]}")


def _answer(words: list[str]) -> str:
    """What a command of Slurm prints, or nothing when it does not answer."""
    if not shutil.which(words[0]):
        return ""
    try:
        done = subprocess.run(
            words, env=outer_environment() | environment(), capture_output=True, text=True, timeout=15, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _wait(otherwise: str, condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            logs = sorted((F / "log").glob("*.log"))
            said = "".join(f"\n{log.name}: {log.read_text(errors='replace')[-300:]}" for log in logs)
            raise LabError(f"{otherwise} after {timeout_s:.0f} s; {F}/log has:{said}")
        time.sleep(0.1)
