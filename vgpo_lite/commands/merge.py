"""`vgpo-lite merge`: one folder that every program loads."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vgpo_lite.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vgpo_lite.export import MergeReport


def merge(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_ADAPTER", help="Run directory or adapter folder.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Where to write. \\[default: RUN/merged]", show_default=False
        ),
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            "--base", metavar="BASE", help="dequantized: the weights that were trained; original: the 16-bit ones."
        ),
    ] = "dequantized",
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", metavar="", help="Compare the result with the adapter.")
    ] = True,
    gguf: Annotated[
        str | None,
        typer.Option(
            "--gguf", metavar="LLAMA_CPP", help="Your checkout of llama.cpp: its converter then writes GGUF files too."
        ),
    ] = None,
    gguf_type: Annotated[
        str, typer.Option("--gguf-type", metavar="TYPE", help="Their format: auto, f32, f16, bf16 or q8_0.")
    ] = "auto",
) -> None:
    """Merge an adapter into its model, for any program to load.

    Writes a folder that transformers, vLLM and the hub take as it is. Fails
    where it is further from the adapter than a tenth of what the adapter
    changed. With --gguf, the converter of llama.cpp writes the text model and
    the vision tower into the folder as GGUF; a folder that is merged already
    is then only converted.

    Examples:

      vgpo-lite merge runs/qwen2-vl-2b-geo3k --output merged

      vgpo-lite merge runs/qwen2-vl-2b-geo3k -o merged --base original

      vgpo-lite merge merged --gguf ~/llama.cpp --gguf-type q8_0
    """
    from vgpo_lite.commands.targets import existing_folder

    if base not in ("dequantized", "original"):
        raise ConfigError(f"--base is {base!r}; expected dequantized or original.")
    folder = existing_folder(source)
    convert = None if gguf is None else _converter(gguf, gguf_type)  # what is wrong with it shows before the merge
    is_merged = convert is not None and (folder / "config.json").is_file()
    place = folder if is_merged else folder / "merged" if output is None else Path(output)
    if not is_merged:
        from vgpo_lite.export import merge as run

        _show(run(folder, place, base="original" if base == "original" else "dequantized", verify=verify))
    elif output is not None:
        raise ConfigError(f"{folder} is merged already, so it is only converted, in its place. Leave out --output.")
    if convert is not None:
        convert(place)


def _converter(llama_cpp: str, outtype: str) -> Callable[[Path], None]:
    """What writes GGUF files into a folder, the converter's own words going to stderr.

    Raises:
        ConfigError: There is no converter, or no such format.
    """
    from vgpo_lite.export.gguf import check_type, find_converter, write_gguf

    converter = find_converter(llama_cpp)
    check_type(outtype)

    def convert(folder: Path) -> None:
        text, vision = write_gguf(folder, converter, outtype=outtype, on_line=lambda line: typer.echo(line, err=True))
        typer.echo("written by llama.cpp, and not compared with the adapter:")
        words = shlex.join(["llama-mtmd-cli", "-m", str(text), "--mmproj", str(vision)])
        typer.echo(f"  {words} --image PICTURE -p 'How many ...?'")

    return convert


def _show(report: MergeReport) -> None:
    from vgpo_lite.commands.words import program

    for note in report.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{report.layers} layers of {report.model_id} changed, stored as {report.dtype}")
    typer.echo(f"rounding changed the update by {100 * report.rounding_error:.2g} % of its norm")
    compared = report.agreement
    if compared is None:
        typer.echo("not compared with the adapter (--no-verify)")
    else:
        typer.echo(f"largest logit gap, merged and adapter: {compared.merged_gap:.3g}")
        typer.echo(f"largest logit gap, adapter and base:   {compared.adapter_gap:.3g}")
        share = f"{100 * compared.greedy:.1f} % of {compared.positions} positions"
        typer.echo(f"same likeliest token, merged and adapter: {share}")
    typer.echo(f"{report.output} is ready: from_pretrained({report.output!r}), or")
    typer.echo(f"  {program()} chat {report.output} --image PICTURE --question 'How many ...?'")
