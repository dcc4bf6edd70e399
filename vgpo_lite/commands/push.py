"""`vgpo-lite push`: an adapter or a merged model, with its card, on the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vgpo_lite.export import Upload


def push(
    source: Annotated[
        str, typer.Argument(metavar="RUN_OR_FOLDER", help="Run directory, adapter folder, or merged folder.")
    ],
    repository: Annotated[
        str, typer.Option("--to", metavar="OWNER/NAME", help="The repository; created where there is none.")
    ],
    public: Annotated[bool, typer.Option("--public", metavar="", help="For everybody to see.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", metavar="", help="Commit to a repository that holds files already.")
    ] = False,
    message: Annotated[str, typer.Option("--message", metavar="TEXT", help="Of the commit.")] = "Upload with vgpo-lite",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar="", help="Only show what would be uploaded; asks no network.")
    ] = False,
) -> None:
    """Upload an adapter or a merged model, with its card, to the hub.

    A run stands for its adapter. Only the adapter or model, its configuration
    and its card are sent: no optimizer state, no journal, no completions. A
    file that names a folder of this machine is refused. The repository is
    private unless --public is given.

    Examples:

      vgpo-lite push runs/qwen2-vl-2b-geo3k --to me/geo3k-adapter --dry-run

      vgpo-lite push merged --to me/qwen2-vl-2b-geo3k --public
    """
    from vgpo_lite.commands.targets import existing_folder
    from vgpo_lite.export.pushing import check_name, check_token, upload_of
    from vgpo_lite.export.pushing import push as run

    check_name(repository)
    upload = upload_of(existing_folder(source), repository)
    if not dry_run:
        check_token()
    visibility = "public" if public else "private"
    verb = "would upload" if dry_run else "uploading"
    typer.echo(f"{verb} the {upload.kind} in {upload.folder} to {repository} ({visibility}):")
    _show(upload)
    if not dry_run:
        typer.echo(run(upload, repository, public=public, overwrite=overwrite, message=message))


def _show(upload: Upload) -> None:
    from vgpo_lite.commands.words import columns
    from vgpo_lite.units import memory

    sizes = upload.sizes
    rows = [*((f"  {name}", memory(size)) for name, size in sizes.items())]
    for line in columns([*rows, (f"  {len(sizes)} files", memory(sum(sizes.values())))]):
        typer.echo(line)
    if upload.left_out:
        typer.echo(f"stays here: {', '.join(upload.left_out)}")
