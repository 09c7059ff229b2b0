"""What SkyPilot and jobs need in an image, checked in containers."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from bafogpt import __version__
from bafogpt.storage.bucket import Bucket
from tests.conftest import S3
from tests.image.conftest import Container, Images

HOMES = [("root", "/root"), ("bafogpt", "/home/bafogpt")]


def skypilot_source(path: str) -> str:
    """A file of the installed SkyPilot."""
    spec = importlib.util.find_spec("sky")
    assert spec is not None and spec.origin is not None
    return (Path(spec.origin).parent / path).read_text()


def test_the_packages_that_skypilot_installs_are_present(container: Container) -> None:
    match = re.search(r"install -y '\s*'(rsync [a-z0-9 -]+?)\\''", skypilot_source("provision/docker_utils.py"))
    assert match, "SkyPilot installs its packages in another way now: see provision/docker_utils.py"
    packages = match[1].split()
    assert len(packages) == 7

    # without a network apt-get could not fetch a missing one
    assert "0 newly installed" in container.run("apt-get", "install", "-y", *packages)


def test_the_tools_that_skypilot_calls_are_present(container: Container) -> None:
    container.run("which", "bash", "apt-get", "sudo", "service", "pkill", "ip", "lsof", "nohup", "flock", "python3")


def test_a_user_has_sudo_without_a_password(container: Container) -> None:
    assert container.run("sudo", "-n", "id", "-u", user="bafogpt").strip() == "0"
    assert container.run("id", "-u", user="bafogpt").strip() == "10001"


@pytest.mark.parametrize(("user", "home"), HOMES)
def test_uv_is_at_skypilots_path_and_bafogpt_on_that_of_a_login_shell(
    container: Container, user: str, home: str
) -> None:
    clean = ("env", "-i", f"HOME={home}")

    assert container.run(*clean, "sh", "-c", '"$HOME/.local/bin"/uv -V', user=user).startswith("uv ")
    found = container.run(*clean, "bash", "--login", "-c", "command -v bafogpt", user=user)
    assert found.strip() == "/opt/bafogpt/bin/bafogpt"


SSHD = """
set -e
ls /etc/ssh/ssh_host_* 2>/dev/null && exit 9
echo 'Port 10022' >> /etc/ssh/sshd_config
mkdir -p -m 700 ~/.ssh
ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519
cp ~/.ssh/id_ed25519.pub ~/.ssh/authorized_keys
service ssh start >&2
ssh -p 10022 -o StrictHostKeyChecking=accept-new -o BatchMode=yes 127.0.0.1 bafogpt --version
ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub
"""


def test_each_machine_has_its_own_host_key_and_a_session_finds_the_command(images: Images) -> None:
    (version, first), (again, second) = (images.run("bash", "-c", SSHD).splitlines() for _ in range(2))

    assert version == again == f"bafogpt {__version__}"
    assert first.split()[1] != second.split()[1], "two machines with the same host key"


def test_a_pod_starts_with_skypilots_commands_for_runpod(images: Images) -> None:
    match = re.search(r"setup_cmd = \((.*?)\)\n\n", skypilot_source("provision/runpod/utils.py"), re.DOTALL)
    assert match
    lines = re.findall(r"f?'((?:[^'\\]|\\.)*)'\n?", match[1])
    script = "".join(lines).encode().decode("unicode_escape").replace("{public_key}", "$(cat /tmp/key.pub)")
    script = script.replace("sleep infinity", "true").replace('echo "sudo"', "echo sudo").replace('echo ""', "echo")
    options = "-i /tmp/key -o StrictHostKeyChecking=no -o BatchMode=yes"
    log_in = f"ssh {options} root@127.0.0.1 'bash --login -c \"bafogpt --version\"'"

    output = images.run("bash", "-c", f"ssh-keygen -q -t ed25519 -N '' -f /tmp/key; {script}; {log_in}")

    assert output.splitlines()[-1] == f"bafogpt {__version__}"


TRAIN = """
set -e; cd ~; mkdir -p bucket
bafogpt data prepare starter --tokenizer bytes --out data/starter >&2
bafogpt job run demo --run in-image --set train.checkpoint.every=2 {options} >&2
bafogpt runs verify in-image >&2
bafogpt runs show in-image --json
"""


def test_it_trains_without_a_network_and_not_as_root(container: Container) -> None:
    options = "--set train.tokens=4096 --set train.validation.every=4 --set supervisor.drill_kill_at_step=null"
    script = "export BAFOGPT_BUCKET=file://$HOME/bucket" + TRAIN.format(options=options)

    run = json.loads(container.run("bash", "-c", script, user="bafogpt"))

    assert run["state"] == "succeeded"
    assert [each["step"] for each in run["checkpoints"]][-1] == 4
    assert run["samples"] > 0 and not run["sample_problems"]


def test_the_demo_job_reads_from_and_writes_to_a_bucket_on_the_host(images: Images, s3: S3) -> None:
    bucket = f"{s3.url}/image-contract"  # not the root, where other tests keep their datasets
    environment = {**s3.environment, "BAFOGPT_BUCKET": bucket}
    words = [f"--env={name}={value}" for name, value in environment.items() if name != "BAFOGPT_HOME"]
    script = TRAIN.format(options="--set train.tokens=6144 --set supervisor.drill_kill_at_step=3")

    run = json.loads(images.run("bash", "-c", script, options=("--network=host", *words)))

    assert run["state"] == "succeeded"
    assert run["restarts"] == 1 and len(run["interruptions"]) == 1
    assert Bucket.open(bucket, s3.settings).exists("runs/in-image/checkpoints/step-00000006.json")
