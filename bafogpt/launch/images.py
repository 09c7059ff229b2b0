"""Which container image the tasks run in: one file says it, every task file repeats it, and both are checked.

``docker/image.yaml`` is that file. :func:`pin` writes an image's digest into it and into every task file, all or
none; :func:`check` refuses a checkout in which image, task files and ``constraints.txt`` do not belong together.
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

PLACE = Path("docker/image.yaml")
CONSTRAINTS = Path("constraints.txt")
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


@dataclass(frozen=True, kw_only=True)
class Image:
    """``docker/image.yaml``. Every key is in the file, null where it is not known."""

    repository: str
    tag: str | None
    """A name for people; null when the image was pinned by its digest alone."""
    digest: str | None
    """``sha256:…`` in the registry; null before the first image is pinned."""
    constraints: str | None
    """``sha256:…`` of the ``constraints.txt`` that the image was built with."""
    revision: str | None
    """Commit that the image was built from."""

    def __post_init__(self) -> None:
        ImageReference(repository=self.repository, tag=self.tag, digest=self.digest)
        if self.tag is None and self.digest is None:
            raise ValueError("neither a tag nor a digest")
        if (self.digest is None) != (self.constraints is None):
            raise ValueError("digest and constraints are known together or not at all")
        if self.constraints is not None and not SHA256.fullmatch(self.constraints):
            raise ValueError(f"constraints is '{self.constraints}'; sha256: and 64 small hexadecimal digits")
        if self.revision is not None and not _COMMIT.fullmatch(self.revision):
            raise ValueError(f"revision is '{self.revision}'; a whole commit, or null")

    @property
    def reference(self) -> str:
        """What the tasks name: the digest alone, which cannot move, or the tag where there is none yet."""
        return f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag}"


def checkout(cwd: Path | None = None) -> Path:
    """The project's folder with ``docker/image.yaml``. Raises :class:`NotFoundError` where there is none."""
    root = project.root(cwd)
    if (root / PLACE).is_file():
        return root
    if root.name == "_project":
        raise NotFoundError(
            f"this bafogpt was installed without its checkout, and {PLACE} is kept in one", "cd CHECKOUT of bafogpt"
        )
    raise NotFoundError(f"{root} has no {PLACE}", "cd CHECKOUT of bafogpt")


def load(root: Path) -> Image:
    """What ``docker/image.yaml`` says. Raises :class:`ConfigError` naming the key that is wrong."""
    return schema.build(Image, schema.load_yaml(root / PLACE), where=str(PLACE))


def check(root: Path) -> Image:
    """The image, when every task file names it and it was built with this ``constraints.txt``.

    Raises :class:`ConfigError` or :class:`ConflictError` naming the file that disagrees and what to type.
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
                raise ConflictError(f"{name} runs in {other}, but {PLACE} says {wanted}", hint)
    if image.digest and image.constraints != (now := _constraints(root)):
        raise ConflictError(
            f"{CONSTRAINTS} is not the one that the image of {PLACE} was built with "
            f"({(image.constraints or '')[:19]}…, now {now[:19]}…)",
            "./scripts/image build; ./scripts/image push REF --digest-file F; bafogpt image pin REF --digest-file F",
        )
    return image


def pin(root: Path, reference: ImageReference, revision: str | None = None) -> list[Path]:
    """Write the image into ``docker/image.yaml`` and every task file; returns the files that changed.

    ``revision`` is the commit that the image was built from; the digest of ``constraints.txt`` is then taken of that
    commit, else of the working tree. Comments and everything else in the files stay as they are. When one file cannot
    be written, the others get their old content back. Raises :class:`ConfigError` before anything is written when a
    file is not what it should be.
    """
    image = _described(root, reference, revision)
    texts: dict[Path, str] = {}
    for path in _task_files(root):
        name = path.relative_to(root)
        texts[path] = _with_image(_read(path), PREFIX + image.reference, name)
    texts[root / PLACE] = _with_keys(_read(root / PLACE), schema.to_dict(image))  # last: what the others are held to
    changed = {path: text for path, text in texts.items() if text != _read(path)}
    assert schema.build(Image, schema.parse_yaml(texts[root / PLACE], str(PLACE)), str(PLACE)) == image
    _write_all(changed)
    return list(changed)


def _described(root: Path, reference: ImageReference, revision: str | None) -> Image:
    """What ``docker/image.yaml`` is to say about a reference.

    Of the image that is pinned already, what is known stays: that ``constraints.txt`` has changed since does not change
    what the image was built with.
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
    """Everything in ``sky/`` and ``jobs/`` that can name an image."""
    return [path for folder in ("sky", "jobs") for path in sorted((root / folder).glob("*.y*ml"))]


def _read(path: Path) -> str:
    """The text as it is: line ends are not translated."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text", f"file {path}") from None


def _image_nodes(text: str, where: str) -> list[yaml.ScalarNode]:
    """The values of ``image_id`` in a YAML text, in order: where they stand is in their marks."""
    schema.parse_yaml(text, where)  # says what is wrong, by line
    found: dict[int, yaml.ScalarNode] = {}  # by position: an alias leads to the same node again

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
    """The text with every container image in it replaced, and nothing else touched."""
    nodes = [node for node in _image_nodes(text, str(name)) if node.value.startswith(PREFIX)]
    if not nodes and name.parts[0] == "sky":
        raise _names_none(name, image_id)
    for node in reversed(nodes):  # from the end, so that positions stay true
        start, end = node.start_mark.index, node.end_mark.index
        if text[start:end].count(node.value) != 1:
            raise ConfigError(
                f"{name} line {node.start_mark.line + 1}: image_id is not written on one line", f"edit {name}"
            )
        text = text[:start] + text[start:end].replace(node.value, image_id) + text[end:]
    return text


def _with_keys(text: str, values: Mapping[str, str | None]) -> str:
    """The text of a flat YAML mapping with new values for its keys; comments stay where they are."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    for key, node in sorted(root.value, key=lambda pair: -pair[1].start_mark.index):
        start, end = node.start_mark.index, node.end_mark.index
        space = "" if text[start - 1 : start].isspace() else " "
        text = text[:start] + space + _scalar(values[key.value]) + text[end:]
    return text


def _scalar(value: str | None) -> str:
    """``value`` as YAML that is read back as the same: digits alone need quotes."""
    if value is None:
        return "null"
    return value if yaml.safe_load(value) == value else f'"{value}"'


def _names_none(name: Path, image_id: str) -> ConfigError:
    return ConfigError(f"{name} names no image", f"edit {name}: resources: {{image_id: {image_id}}}")


def _write_all(texts: Mapping[Path, str]) -> None:
    """Write every file, or leave every file as it was."""
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
    """The whole commit that a revision means here."""
    return _git(root, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}").decode().strip()


def _git(root: Path, *words: str) -> bytes:
    """What git prints. Raises :class:`NotFoundError` for what this checkout does not have."""
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, check=False, timeout=30)
    except FileNotFoundError:
        raise NotFoundError("git is not installed, and --revision needs it", "apt-get install git") from None
    if done.returncode:
        raise NotFoundError(f"git {words[0]}: {words[-1]} is not in {root}", "git fetch --unshallow origin")
    return done.stdout
