"""The container image of the tasks: pinned in ``docker/image.yaml``, repeated in every task file.

:func:`pin` writes an image's digest into all of these files or none; :func:`check` refuses a checkout whose image, task
files and ``constraints.txt`` do not match.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from bafogpt.core import digest as digests
from bafogpt.core import files, schema
from bafogpt.core.errors import ConfigError, ConflictError, NotFoundError
from bafogpt.jobs import project
from bafogpt.jobs.image_ref import PREFIX, SHA256, ImageReference

IMAGE_FILE = Path("docker/image.yaml")
CONSTRAINTS = Path("constraints.txt")
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


@dataclass(frozen=True, kw_only=True)
class Image:
    """``docker/image.yaml``. The file has every key, null for an unknown value."""

    repository: str
    tag: str | None
    """Null when the image was pinned by its digest alone."""
    digest: str | None
    """``sha256:…`` in the registry; null before the first image is pinned."""
    constraints: str | None
    """``sha256:…`` of the ``constraints.txt`` in the image."""
    revision: str | None
    """The commit of the build."""

    def __post_init__(self) -> None:
        ImageReference(repository=self.repository, tag=self.tag, digest=self.digest)
        if self.tag is None and self.digest is None:
            raise ValueError("neither a tag nor a digest")
        if (self.digest is None) != (self.constraints is None):
            raise ValueError("digest and constraints must be given together")
        if self.constraints is not None and not SHA256.fullmatch(self.constraints):
            raise ValueError(f"constraints is '{self.constraints}'; sha256: and 64 lowercase hexadecimal digits")
        if self.revision is not None and not _COMMIT.fullmatch(self.revision):
            raise ValueError(f"revision is '{self.revision}'; expected a full commit hash, or null")

    @property
    def reference(self) -> str:
        """The reference in the tasks: by digest, which cannot move, or by tag where there is none yet."""
        return f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag}"


def checkout(cwd: Path | None = None) -> Path:
    """The project's folder with ``docker/image.yaml``. Raises :class:`NotFoundError` where there is none."""
    root = project.root(cwd)
    if (root / IMAGE_FILE).is_file():
        return root
    installed = root.name == "_project"
    message = f"this bafogpt was installed without {IMAGE_FILE}" if installed else f"{root} has no {IMAGE_FILE}"
    raise NotFoundError(message, "cd CHECKOUT of bafogpt")


def load(root: Path) -> Image:
    """Read ``docker/image.yaml``. Raises :class:`ConfigError` naming the wrong key."""
    return schema.build(Image, schema.load_yaml(root / IMAGE_FILE), where=str(IMAGE_FILE))


def check(root: Path) -> Image:
    """The image, if every task file names it and it was built with this ``constraints.txt``.

    Raises :class:`ConfigError` or :class:`ConflictError` naming the file that differs.
    """
    image = load(root)
    wanted = PREFIX + image.reference
    for path in _task_files(root):
        name = path.relative_to(root)
        named = [node.value for node in _image_nodes(_read(path), str(name))]
        if not named and name.parts[0] == "sky":
            raise _names_none(name, wanted)
        for other in named:
            if other != wanted:
                pinned = image.digest is not None and other.startswith(PREFIX)
                hint = f"bafogpt image pin {image.reference}" if pinned else f"edit {name}: image_id: {wanted}"
                raise ConflictError(f"{name} runs in {other}, but {IMAGE_FILE} has {wanted}", hint)
    if image.digest and image.constraints != (now := _constraints(root)):
        raise ConflictError(
            f"{CONSTRAINTS} is not the one that the image of {IMAGE_FILE} was built with "
            f"({(image.constraints or '')[:19]}…, now {now[:19]}…)",
            "./scripts/image build; ./scripts/image push REF --digest-file F; bafogpt image pin REF --digest-file F",
        )
    return image


def pin(root: Path, reference: ImageReference, revision: str | None = None) -> list[Path]:
    """Write the image into ``docker/image.yaml`` and every task file; returns the changed files.

    ``revision`` is the commit of the image's build, whose ``constraints.txt`` is then recorded; by default it is the
    working tree's. Comments and everything else stay. Either all files are written or none. Raises
    :class:`ConfigError` for a file that cannot be changed, before anything is written.
    """
    image = _new_image(root, reference, revision)
    texts: dict[Path, str] = {}
    for path in _task_files(root):
        name = path.relative_to(root)
        texts[path] = _with_image(_read(path), PREFIX + image.reference, name)
    texts[root / IMAGE_FILE] = _with_keys(_read(root / IMAGE_FILE), schema.to_dict(image))
    changed = {path: text for path, text in texts.items() if text != _read(path)}
    assert schema.build(Image, schema.parse_yaml(texts[root / IMAGE_FILE], str(IMAGE_FILE)), str(IMAGE_FILE)) == image
    _write_all(changed)
    return list(changed)


def _new_image(root: Path, reference: ImageReference, revision: str | None) -> Image:
    """The new content of ``docker/image.yaml``.

    An image that is pinned already keeps its constraints: a later change of the file does not change the image.
    """
    old = load(root)
    if revision is None and reference.digest == old.digest:
        return replace(old, repository=reference.repository, tag=reference.tag or old.tag)
    commit = _commit(root, revision) if revision is not None else None
    return Image(
        repository=reference.repository,
        tag=reference.tag,
        digest=reference.digest,
        constraints=_constraints(root, commit),
        revision=commit,
    )


def _task_files(root: Path) -> list[Path]:
    """Every file in ``sky/`` and ``jobs/``."""
    return [path for folder in ("sky", "jobs") for path in sorted((root / folder).glob("*.y*ml"))]


def _read(path: Path) -> str:
    """The text, with its own line ends."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text", f"file {path}") from None


def _image_nodes(text: str, where: str) -> list[yaml.ScalarNode]:
    """The values of ``image_id`` in a YAML text, in order; their marks are positions in it."""
    schema.parse_yaml(text, where)  # raises ConfigError with the line
    found: dict[int, yaml.ScalarNode] = {}  # by position: an alias is the same node

    def walk(node: yaml.Node | None) -> Iterator[yaml.Node]:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == "image_id":
                    yield from (each for _, each in value.value) if isinstance(value, yaml.MappingNode) else (value,)
                else:
                    yield from walk(value)
        elif isinstance(node, yaml.SequenceNode):
            for each in node.value:
                yield from walk(each)

    for node in walk(yaml.compose(text, Loader=yaml.SafeLoader)):
        if isinstance(node, yaml.ScalarNode):
            found[node.start_mark.index] = node
    return [found[index] for index in sorted(found)]


def _with_image(text: str, image_id: str, name: Path) -> str:
    """The text with every container image replaced."""
    nodes = [node for node in _image_nodes(text, str(name)) if node.value.startswith(PREFIX)]
    if not nodes and name.parts[0] == "sky":
        raise _names_none(name, image_id)
    for node in reversed(nodes):  # from the end, so that positions stay valid
        start, end = node.start_mark.index, node.end_mark.index
        if text[start:end].count(node.value) != 1:
            raise ConfigError(
                f"{name} line {node.start_mark.line + 1}: image_id is not written on one line", f"edit {name}"
            )
        text = text[:start] + text[start:end].replace(node.value, image_id) + text[end:]
    return text


def _with_keys(text: str, values: Mapping[str, str | None]) -> str:
    """The text of a flat YAML mapping with new values; comments stay."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    for key, node in sorted(root.value, key=lambda pair: -pair[1].start_mark.index):
        start, end = node.start_mark.index, node.end_mark.index
        space = "" if text[start - 1 : start].isspace() else " "
        text = text[:start] + space + _scalar(values[key.value]) + text[end:]
    return text


def _scalar(value: str | None) -> str:
    """``value`` as YAML: text that looks like a number needs quotes."""
    if value is None:
        return "null"
    return value if yaml.safe_load(value) == value else f'"{value}"'


def _names_none(name: Path, image_id: str) -> ConfigError:
    return ConfigError(f"{name} has no image_id", f"edit {name}: resources: {{image_id: {image_id}}}")


def _write_all(texts: Mapping[Path, str]) -> None:
    """Write all files, or none."""
    paths = [path.resolve() for path in texts]  # a link stays a link
    before = [path.read_bytes() for path in paths]
    begun = 0
    try:
        for path, text in zip(paths, texts.values(), strict=True):
            begun += 1
            files.write_atomic(path, text, mode=os.stat(path).st_mode & 0o777)
    except BaseException:
        for path, old in zip(paths[:begun], before[:begun], strict=True):
            if path.read_bytes() != old:
                files.write_atomic(path, old, mode=os.stat(path).st_mode & 0o777)
        raise


def _constraints(root: Path, commit: str | None = None) -> str:
    """``sha256:…`` of ``constraints.txt``, in the working tree or as it was at a commit."""
    if commit is not None:
        return digests.of_bytes(_git(root, "show", f"{commit}:./{CONSTRAINTS}"), "sha256")
    if not (root / CONSTRAINTS).is_file():
        raise NotFoundError(f"{root} has no {CONSTRAINTS}", "cd CHECKOUT of bafogpt")
    return digests.of_file(root / CONSTRAINTS, "sha256")


def _commit(root: Path, revision: str) -> str:
    """The full hash of a revision."""
    return _git(root, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}").decode().strip()


def _git(root: Path, *words: str) -> bytes:
    """The output of git. Raises :class:`NotFoundError` for an unknown revision."""
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, check=False, timeout=30)
    except FileNotFoundError:
        raise NotFoundError("git is not installed, and --revision needs it", "apt-get install git") from None
    if done.returncode:
        raise NotFoundError(f"git {words[0]}: {words[-1]} is not in {root}", "git fetch --unshallow origin")
    return done.stdout
