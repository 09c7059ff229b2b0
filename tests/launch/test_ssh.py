"""ssh to a rented machine, and the command that stops a supervisor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bafogpt.launch.engines.skypilot import ssh


def test_the_stop_command_reaches_the_supervisor_and_no_other_process(tmp_path: Path):
    program = tmp_path / "bafogpt"
    program.write_text(
        "import signal, sys, time\n"
        "signal.signal(15, lambda *_: sys.exit(103))\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )

    def start(*words: str) -> subprocess.Popen[bytes]:
        child = subprocess.Popen([*words], stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"up\n"
        return child

    job = [str(program), "job", "run", "jobs/x.yaml", "--run"]
    mine, other = start(sys.executable, *job, "zulu-1"), start(sys.executable, *job, "zulu-11")
    wrapper = start("/bin/sh", "-c", "echo up; sleep 60; : bafogpt job run jobs/x.yaml --run zulu-1")
    try:
        assert subprocess.run(ssh.stop_command("zulu-1"), check=False).returncode == 0
        assert mine.wait(timeout=10) == 103
        assert other.poll() is None and wrapper.poll() is None
        assert subprocess.run(ssh.stop_command("zulu-1"), check=False).returncode == 1
    finally:
        for child in (mine, other, wrapper):
            child.kill()
            child.wait()


def test_ssh_keeps_the_words_of_a_command_and_names_the_node():
    words = ssh.shell("r1", ["echo", "two  words", "$HOME"], 2)
    assert words[0] == "ssh" and words[-2:] == ["--", "echo 'two  words' '$HOME'"] and "r1-worker2" in words
