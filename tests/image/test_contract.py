"""What SkyPilot and jobs ask of an image, each line of it, in containers."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

from bafogpt import __version__
from bafogpt.storage.bucket import Bucket
from tests.conftest import S3
from tests.image.conftest import Container, Images


def skypilots_packages() -> list[str]:
    """The packages that this very SkyPilot installs in a container, read from its source."""
    spec = importlib.util.find_spec("sky")
    assert spec is not None and spec.origin is not None
    source = (Path(spec.origin).parent / "provision" / "docker_utils.py").read_text()
    match = re.search(r"install -y '\s*'(rsync [a-z0-9 -]+?)\\''", source)
    assert match, "SkyPilot installs its packages in another way now: look at provision/docker_utils.py"
    return match[1].split()


def test_it_has_what_skypilot_installs(container: Container) -> None:
    packages = skypilots_packages()
    assert len(packages) == 7

    said = container.run("apt-get", "install", "-y", *packages)  # without a network: it would fail to fetch one

    assert "0 newly installed" in said


def test_it_has_what_skypilot_calls(container: Container) -> None:
    for tool in ("bash", "apt-get", "sudo", "service", "pkill", "ip", "lsof", "nohup", "flock", "python3"):
        container.run("which", tool)


def test_a_user_has_sudo_without_a_password(container: Container) -> None:
    assert container.run("sudo", "-n", "id", "-u", user="bafogpt").strip() == "0"
    assert container.run("id", "-u", user="bafogpt").strip() == "10001"


def test_uv_is_where_skypilot_looks(container: Container) -> None:
    for user, home in (("root", "/root"), ("bafogpt", "/home/bafogpt")):
        said = container.run("env", "-i", f"HOME={home}", "sh", "-c", '"$HOME/.local/bin"/uv -V', user=user)
        assert said.startswith("uv ")


def test_the_command_is_on_the_path_of_a_login_shell(container: Container) -> None:
    for user, home in (("root", "/root"), ("bafogpt", "/home/bafogpt")):
        said = container.run("env", "-i", f"HOME={home}", "bash", "--login", "-c", "command -v bafogpt", user=user)
        assert said.strip() == "/opt/bafogpt/bin/bafogpt"


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


def test_sshd_starts_with_host_keys_of_its_own_and_a_session_finds_the_command(images: Images) -> None:
    said = [images.run("bash", "-c", SSHD).splitlines() for _ in range(2)]

    assert [each[0] for each in said] == [f"bafogpt {__version__}"] * 2
    assert said[0][1].split()[1] != said[1][1].split()[1], "two machines with the same host key"


def test_it_starts_a_pod_as_skypilot_does_on_runpod(images: Images) -> None:
    """The commands of ``sky/provision/runpod/utils.py`` with a package index that cannot be fetched."""
    spec = importlib.util.find_spec("sky")
    assert spec is not None and spec.origin is not None
    source = (Path(spec.origin).parent / "provision" / "runpod" / "utils.py").read_text()
    match = re.search(r"setup_cmd = \((.*?)\)\n\n", source, re.DOTALL)
    assert match
    lines = re.findall(r"f?'((?:[^'\\]|\\.)*)'\n?", match[1])
    script = "".join(lines).encode().decode("unicode_escape").replace("{public_key}", "$(cat /tmp/key.pub)")
    script = script.replace("sleep infinity", "true").replace('echo "sudo"', "echo sudo").replace('echo ""', "echo")
    options = "-i /tmp/key -o StrictHostKeyChecking=no -o BatchMode=yes"
    log_in = f"ssh {options} root@127.0.0.1 'bash --login -c \"bafogpt --version\"'"

    said = images.run("bash", "-c", f"ssh-keygen -q -t ed25519 -N '' -f /tmp/key; {script}; {log_in}")

    assert said.splitlines()[-1] == f"bafogpt {__version__}"


def test_help(container: Container) -> None:
    assert "Train a language model" in container.run("bafogpt", "--help")


TRAIN = """
set -e
cd ~ && export BAFOGPT_BUCKET=file://$HOME/bucket && mkdir -p bucket
bafogpt data prepare starter --tokenizer bytes --out data/starter >&2
bafogpt job run demo --run first --set train.tokens=4096 --set train.validation.every=4 \
  --set train.checkpoint.every=2 --set supervisor.drill_kill_at_step=null >&2
bafogpt runs show first --json
"""


def test_it_trains_without_a_network_and_not_as_root(container: Container) -> None:
    run = json.loads(container.bash(TRAIN, user="bafogpt"))

    assert run["state"] == "succeeded"
    assert [each["step"] for each in run["checkpoints"]][-1] == 4
    assert run["samples"] > 0 and not run["sample_problems"]


def test_the_demo_job_reads_from_and_writes_to_a_bucket_on_the_host(images: Images, s3: S3) -> None:
    bucket = f"{s3.url}/image-contract"  # not the root, where other tests keep their datasets
    environment = {**s3.environment, "BAFOGPT_BUCKET": bucket}
    words = [f"--env={name}={value}" for name, value in environment.items() if name != "BAFOGPT_HOME"]
    prepare = "bafogpt data prepare starter --tokenizer bytes --out data/starter >&2"
    over = "--set train.tokens=6144 --set train.checkpoint.every=2 --set supervisor.drill_kill_at_step=3"

    said = images.run(
        "bash",
        "-c",
        f"set -e; {prepare}; bafogpt job run demo --run in-image {over} >&2; bafogpt runs verify in-image >&2; "
        "bafogpt runs show in-image --json",
        options=("--network=host", *words),
    )

    run = json.loads(said)
    assert run["state"] == "succeeded"
    assert run["restarts"] == 1 and len(run["kills"]) == 1
    assert Bucket.open(bucket, s3.settings).exists("runs/in-image/checkpoints/step-00000006.json")
