from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bafogpt.core import process
from bafogpt.core.errors import BafoError, ConflictError, StorageError
from bafogpt.core.settings import Settings
from bafogpt.storage.bucket import Bucket
from bafogpt.storage.embedded import server
from bafogpt.storage.embedded.files import ServerFolder, ServerState

WAIT_S = 15.0
HOLDER = """
import sys, time
from pathlib import Path
from bafogpt.storage.embedded import server
lease = server.lease(Path(sys.argv[1]))
print(lease.endpoint.url, flush=True)
time.sleep(600)
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home without a server, and without one afterwards."""
    yield tmp_path / "home"
    server.stop(tmp_path / "home")


def _servers(home: Path) -> list[psutil.Process]:
    """Server processes and SeaweedFS of this home."""
    found = []
    for each in psutil.process_iter(["cmdline"]):
        line = " ".join(each.info["cmdline"] or [])
        if str(home) in line and ("embedded.server_process" in line or "weed" in line):
            found.append(each)
    return found


def _gone(home: Path) -> bool:
    return process.wait_until(lambda: not _servers(home), WAIT_S)


def _state(home: Path) -> ServerState:
    state = ServerFolder(home).state()
    assert state is not None
    return state


def test_a_lease_starts_the_server_and_the_last_release_ends_it(home: Path) -> None:
    assert server.status(home) is None
    first = server.lease(home)
    second = server.lease(home)
    assert first.endpoint == second.endpoint == server.status(home)
    assert len(_servers(home)) == 2, "the server process and SeaweedFS"

    first.release()
    first.release()
    assert not process.wait_until(lambda: server.status(home) is None, 0.3), "the second lease holds it"
    second.release()
    assert _gone(home)
    assert server.status(home) is None
    assert not list(Path("/tmp").glob(f"seaweedfs-*-{second.endpoint.url.rpartition(':')[2]}.sock"))


def test_the_first_write_works_and_survives_a_restart_at_the_same_url(home: Path) -> None:
    settings = Settings(home=str(home), s3_endpoint="embedded")
    urls = []
    for content in (b"1", b"2"):
        with server.lease(home) as lease:
            urls.append(lease.endpoint.url)
            bucket = Bucket.open("s3://some-bucket", settings)
            bucket.create()
            if content == b"2":
                assert bucket.get("x") == b"1"
            bucket.put("x", content)
        assert server.stop(home)  # Bucket holds a lease until this process ends
        assert _gone(home)
        assert not server.stop(home)
    assert urls[0] == urls[1]
    Bucket.open("s3://some-bucket", settings).check()  # starts it again


def test_killing_the_server_process_ends_seaweedfs_and_a_new_one_can_start(home: Path) -> None:
    with server.lease(home) as old:
        os.kill(_state(home).pid, signal.SIGKILL)
        assert _gone(home)
        with server.lease(home) as new:
            assert server.status(home) == new.endpoint == old.endpoint


def test_when_seaweedfs_dies_the_server_process_ends_and_a_new_one_can_start(home: Path) -> None:
    with server.lease(home):
        (weed,) = (each for each in _servers(home) if "server_process" not in " ".join(each.cmdline()))
        weed.kill()
        assert _gone(home)
        assert server.status(home) is None
        with server.lease(home):
            assert server.status(home) is not None


def test_processes_that_start_at_once_share_one_server_which_ends_when_they_are_killed(home: Path) -> None:
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLDER, str(home)], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    urls = {holder.stdout.readline() for holder in holders if holder.stdout}
    assert len(urls) == 1
    assert len(_servers(home)) == 2
    for holder in holders:
        holder.kill()
        holder.communicate()
    assert _gone(home)


def test_two_homes_run_side_by_side_on_the_loopback_address_only(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with server.lease(home) as one, server.lease(other) as two:
        assert one.endpoint.url != two.endpoint.url
        assert one.endpoint.secret_key != two.endpoint.secret_key
        sockets = [each for server in _servers(home) for each in server.net_connections("inet")]
        listening = [
            each.laddr for each in sockets if each.status == psutil.CONN_LISTEN or each.type == socket.SOCK_DGRAM
        ]
        assert sorted(listening) == sorted(("127.0.0.1", port) for port in _state(home).ports.values())
    assert _gone(other)


def test_a_detached_server_needs_no_lease_until_it_is_stopped(home: Path) -> None:
    endpoint = server.detach(home)
    assert server.detach(home) == endpoint
    with server.lease(home) as lease:
        assert lease.endpoint == endpoint
    assert not process.wait_until(lambda: server.status(home) is None, 0.5)
    assert server.stop(home)
    assert _gone(home)
    assert not server.stop(home)


def test_a_port_can_be_chosen_and_must_be_free(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConflictError, match=f"port {port} is taken"):
            server.lease(home, port=port)
    with server.lease(home, port=port) as lease:
        assert lease.endpoint.url == f"http://127.0.0.1:{port}"
        with pytest.raises(ConflictError, match="runs already"):
            server.lease(home, port=port + 1)
        with server.lease(home, port=port):
            pass


def test_secrets_are_for_the_owner_only_and_never_shown(home: Path) -> None:
    with server.lease(home) as lease:
        folder = ServerFolder(home)
        for path in (folder.credentials, folder.identities):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert lease.endpoint.secret_key in path.read_text()
        assert stat.S_IMODE(folder.root.stat().st_mode) == 0o700
        assert lease.endpoint.secret_key not in repr(lease.endpoint)
        commands = " ".join(" ".join(each.cmdline()) for each in _servers(home))
        assert lease.endpoint.secret_key not in commands
        script = f"set -a; . '{folder.credentials}'; env"
        shown = subprocess.run(["/bin/sh", "-c", script], env={}, capture_output=True, text=True, check=True).stdout
        for name, value in lease.endpoint.environment().items():
            assert f"{name}={value}" in shown.splitlines()


def test_a_server_that_does_not_start_shows_the_end_of_its_log(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ServerFolder(home).prepare()
    ServerFolder(home).identities.write_text("this is not JSON")
    with pytest.raises(StorageError, match="did not start") as raised:
        server.lease(home)
    assert "weed.log" in raised.value.hint
    assert _gone(home)


def test_a_missing_program_is_an_error_with_the_command_to_install_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(BafoError, match="not installed") as raised:
        server.lease(home)
    assert raised.value.hint == "pip install 'bafogpt[local]'"
