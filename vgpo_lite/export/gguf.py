"""GGUF files of a merged folder, made by the user's own llama.cpp: one of the text model, one of the vision tower."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from vgpo_lite.errors import ConfigError, MergeError
from vgpo_lite.storage import storage_errors, sync_files, sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable

CONVERTER = "convert_hf_to_gguf.py"
TYPES = ("auto", "f32", "f16", "bf16", "q8_0")
"""Number formats that the converter writes by itself; smaller ones are llama.cpp's own `llama-quantize`."""
_QUANTIZED = ("q8_0",)
_TOLD_LINES = 5


def find_converter(llama_cpp: str | Path) -> Path:
    """The converter in a checkout of llama.cpp.

    Raises:
        ConfigError: There is none.
    """
    place = Path(llama_cpp).expanduser()
    for candidate in (place, place / CONVERTER):
        if candidate.is_file() and candidate.name == CONVERTER:
            return candidate.resolve()
    raise ConfigError(
        f"--gguf is {str(llama_cpp)!r}, where there is no {CONVERTER}; expected the folder of a checkout of llama.cpp, "
        "which brings that program."
    )


def check_type(outtype: str) -> None:
    """See that the converter writes this number format.

    Raises:
        ConfigError: It does not.
    """
    if outtype not in TYPES:
        raise ConfigError(f"--gguf-type is {outtype!r}; expected one of {', '.join(TYPES)}.")


def write_gguf(folder: Path, converter: Path, *, outtype: str, on_line: Callable[[str], None]) -> tuple[Path, Path]:
    """Convert a merged folder, with this Python; the files appear in the folder when both are complete.

    Args:
        folder: The merged folder.
        converter: llama.cpp's converter (`find_converter`).
        outtype: Number format of the text model, one of `TYPES`; a vision tower is never quantized.
        on_line: Told each line that the converter prints.

    Returns:
        The text model's file and the vision tower's, `NAME.gguf` and `mmproj-NAME.gguf` for a folder called NAME.

    Raises:
        ConfigError: There is no such format.
        MergeError: The converter failed, or wrote nothing; the folder is as it was.
        StorageError: The disk refuses.
    """
    check_type(outtype)
    folder = folder.resolve()
    work = folder / f".gguf-{os.getpid()}.tmp"
    wanted = {"text": (outtype, ()), "vision": ("auto" if outtype in _QUANTIZED else outtype, ("--mmproj",))}
    places = {"text": folder / f"{folder.name}.gguf", "vision": folder / f"mmproj-{folder.name}.gguf"}
    try:
        made = {}
        for part, (kind, options) in wanted.items():
            with storage_errors(str(folder)):
                (work / part).mkdir(parents=True)
            outfile = work / part / f"{folder.name}.gguf"
            words = [
                sys.executable,
                str(converter),
                str(folder),
                "--outfile",
                str(outfile),
                "--outtype",
                kind,
                *options,
            ]
            _run(words, part=part, folder=folder, on_line=on_line)
            made[part] = _written(work / part, part=part, folder=folder)
        with storage_errors(str(folder)):
            for part, file in made.items():
                sync_files(file.parent)
                file.replace(places[part])
            sync_folder(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return places["text"], places["vision"]


def _run(words: list[str], *, part: str, folder: Path, on_line: Callable[[str], None]) -> None:
    """Run the converter and pass on what it prints, line by line."""
    last: deque[str] = deque(maxlen=_TOLD_LINES)
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, errors="replace"
    ) as process:
        try:
            for line in process.stdout or ():
                last.append(line.rstrip("\n"))
                on_line(last[-1])
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        again = shlex.join(["vgpo-lite", "merge", str(folder), "--gguf", str(Path(words[1]).parent)])
        raise MergeError(
            f"{CONVERTER} ended with {process.returncode} on the {part} part of {folder}: "
            f"{' / '.join(last) or 'no word'}. The merged folder is complete. What the converter needs stands in "
            f"llama.cpp's requirements; then convert again: {again}"
        )


def _written(place: Path, *, part: str, folder: Path) -> Path:
    """The one file that the converter left, by whatever name: some versions put `mmproj-` before it, some do not."""
    files = [path for path in place.iterdir() if path.suffix == ".gguf" and path.stat().st_size > 0]
    if len(files) != 1:
        found = ", ".join(sorted(path.name for path in place.iterdir())) or "nothing"
        raise MergeError(
            f"{CONVERTER} told of no failure on the {part} part of {folder}, but left {found}; expected one .gguf file."
        )
    return files[0]
