"""``bafogpt image``: which container image the tasks run in. What it is stands in ``docker/image.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bafogpt.cli.console.options import JsonOption, QuietOption
from bafogpt.cli.console.output import Output

app = typer.Typer(help="The container image that the tasks run in: show, check and pin it.")

ReferenceArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[REF]", help="REGISTRY/REPOSITORY[:TAG]@sha256:…; without a digest or left out: see --digest-file."
    ),
]
DigestFileOption = Annotated[
    Path | None,
    typer.Option("--digest-file", metavar="FILE", help="Take the digest from the file that a push wrote."),
]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", metavar="COMMIT", help="The commit that the image was built from.")
]


@app.command()
def pin(
    reference: ReferenceArgument = None,
    digest_file: DigestFileOption = None,
    revision: RevisionOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make every task run in exactly one image: write its digest into docker/image.yaml and sky/*.yaml.

    A tag alone is refused, because a tag can move. All files are changed or none.
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
    Output.of(json=json, quiet=quiet).result({"image": image.reference, "changed": changed}, text, image.reference)


@app.command()
def check(json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Fail unless the image, constraints.txt and every file in sky/ and jobs/ belong together."""
    from bafogpt.launch import images

    image = images.check(images.checkout())
    text = f"every task runs in {image.reference}" + (
        ", built with this constraints.txt" if image.digest else "; no image has been pinned yet"
    )
    record = {"image": image.reference, "pinned": image.digest is not None}
    Output.of(json=json, quiet=quiet).result(record, text, image.reference)


@app.command()
def show(json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Print the image: repository, tag, digest, and what it was built from."""
    from bafogpt.core import schema
    from bafogpt.launch import images

    image = images.load(images.checkout())
    record = {"image": image.reference, **schema.to_dict(image)}
    Output.of(json=json, quiet=quiet).result(record, id=image.reference)
