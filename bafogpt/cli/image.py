"""``bafogpt image``: the container image of the tasks, described in ``docker/image.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bafogpt.cli.console.app import App
from bafogpt.cli.console.output import Output

app = App(help="Show, check and pin the container image that tasks run in.")


@app.command()
def pin(
    out: Output,
    reference: Annotated[
        str | None, typer.Argument(metavar="REF", help="REGISTRY/REPOSITORY[:TAG]@sha256:…; see also --digest-file.")
    ] = None,
    digest_file: Annotated[
        Path | None,
        typer.Option(
            "--digest-file", metavar="FILE", help="Read the digest from FILE, which './scripts/image push' wrote."
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="COMMIT", help="Commit that the image was built from.")
    ] = None,
) -> None:
    """Pin the image of every task by its digest, in docker/image.yaml and sky/*.yaml.

    A tag alone is refused, because a tag can move. All files are changed, or none.
    """
    from bafogpt.core.errors import NotFoundError
    from bafogpt.jobs.image_ref import pinnable
    from bafogpt.launch import images

    if digest_file is not None and not digest_file.is_file():
        hint = f"./scripts/image push REF --digest-file {digest_file}"
        raise NotFoundError(f"--digest-file {digest_file}: no such file", hint)
    digest = digest_file.read_text(encoding="utf-8", errors="replace").strip() if digest_file else None
    root = images.checkout()
    new = pinnable(reference, digest, images.load(root).repository)
    changed = [str(path.relative_to(root)) for path in images.pin(root, new, revision)]
    image = images.load(root)
    text = f"pinned {image.reference} in {', '.join(changed)}" if changed else f"{image.reference} is pinned already"
    out.result({"image": image.reference, "changed": changed}, text, image.reference)


@app.command()
def check(out: Output) -> None:
    """Check that every file in sky/ and jobs/ has the pinned image, and that it was built with this constraints.txt."""
    from bafogpt.launch import images

    image = images.check(images.checkout())
    text = f"every task runs in {image.reference}" + (
        ", built with this constraints.txt" if image.digest else "; no image has been pinned yet"
    )
    out.result({"image": image.reference, "pinned": image.digest is not None}, text, image.reference)


@app.command()
def show(out: Output) -> None:
    """Print the image: repository, tag, digest, and the commit and constraints.txt it was built from."""
    from bafogpt.core import schema
    from bafogpt.launch import images

    image = images.load(images.checkout())
    out.result({"image": image.reference, **schema.to_dict(image)}, id=image.reference)
