"""What of a folder may leave this machine: the files that others need, checked to name no folder of it."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vgpo_lite.card import RECORD
from vgpo_lite.errors import CheckpointError, PushError
from vgpo_lite.export.sources import adapter_folder
from vgpo_lite.models.hub import model_files
from vgpo_lite.models.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, TRAINED_WITH
from vgpo_lite.models.merging import read_adapter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CARD = "README.md"
_ADAPTER_FILES = frozenset({CARD, ADAPTER_CONFIG, ADAPTER_WEIGHTS, RECORD, TRAINED_WITH})
_MODEL_SUFFIXES = (".json", ".safetensors", ".txt", ".jinja", ".model")
_VOCABULARY = frozenset({"tokenizer.json", "vocab.json"})
"""Files whose texts are tokens: some of them look like paths."""
_LOCAL = re.compile(r"(/|~[/\\]|[A-Za-z]:[/\\]|\\\\)[^\n]*")


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What would be uploaded.

    Attributes:
        kind: Whether it is an adapter or a whole model.
        folder: Where it lies.
        files: The files by name; their content where it is written anew for the hub, else their place.
        left_out: Other files of the folder, which stay here.
    """

    kind: Literal["adapter", "model"]
    folder: Path
    files: Mapping[str, Path | bytes]
    left_out: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {
            name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in self.files.items()
        }


def upload_of(source: str | Path, repository: str) -> Upload:
    """What of a run directory, an adapter or a merged folder would be uploaded; nothing is asked of any network.

    Args:
        source: A run directory stands for its adapter.
        repository: Where it would go, `owner/name`: the card's program then loads it from there.

    Raises:
        CheckpointError: It is neither, or damaged.
        ModelError: The whole model is incomplete.
        MergeError: The run is not finished, or its adapter learned nothing.
        PushError: There is no card, or a file names a folder of this machine.
    """
    folder = Path(source)
    if (folder / "config.json").is_file():
        model_files(str(folder))
        kind, wanted = "model", frozenset(path.name for path in folder.iterdir() if path.name.endswith(_MODEL_SUFFIXES))
    else:
        folder, kind, wanted = adapter_folder(folder), "adapter", _ADAPTER_FILES
        read_adapter(folder)
    present = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    chosen = [name for name in present if name in wanted | {CARD}]
    upload = Upload(
        kind=kind,
        folder=folder,
        files={name: _card(folder, repository) if name == CARD else folder / name for name in chosen},
        left_out=tuple(sorted({path.name for path in folder.iterdir()} - set(chosen))),
    )
    if CARD not in upload.files:
        raise PushError(
            f"{folder} has no {CARD}: only what `vgpo-lite train` or `merge` wrote, card and all, is uploaded."
        )
    _refuse_local_paths(upload)
    return upload


def _card(folder: Path, repository: str) -> bytes:
    text = (folder / CARD).read_text(encoding="utf-8")
    if "- vgpo-lite\n" not in text:
        raise PushError(
            f"{folder / CARD} is not the card that vgpo-lite writes (its tag is missing), so this may be somebody "
            "else's model. Upload it with `hf upload`."
        )
    return re.sub(r'^source = ".*?"', f'source = "{repository}"', text, flags=re.MULTILINE).encode()


def _refuse_local_paths(upload: Upload) -> None:
    """Raise a PushError that names every place where a file names a folder of this machine."""
    found = []
    for name, file in upload.files.items():
        content = file if isinstance(file, bytes) else b"" if name.endswith(".safetensors") else file.read_bytes()
        if name in _VOCABULARY or not content:
            continue
        if name.endswith(".json"):
            try:
                told = json.loads(content)
            except ValueError as error:
                raise CheckpointError(f"{upload.folder / name} is damaged: {error}") from error
            found += [f"{name}: {key} is {value!r}" for key, value in _local_texts(told)]
        text = content.decode(errors="replace")
        found += [f"{name} names {place}" for place in _own_places(upload.folder) if place in text]
    if found:
        base = (
            " The adapter belongs to a model in a local folder: `vgpo-lite merge` makes a whole model of it, which can "
            f"be uploaded; or write the hub id of that model into {ADAPTER_CONFIG} where it is on the hub."
            if any(line.startswith(ADAPTER_CONFIG) for line in found)
            else " Edit them, then push again."
        )
        raise PushError(f"these files name folders of this machine: {'; '.join(dict.fromkeys(found))}.{base}")


def _local_texts(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Texts of a JSON value that are paths from a root, a home or a drive, each with its key."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _local_texts(part, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for part in value:
            yield from _local_texts(part, key)
    elif isinstance(value, str) and _LOCAL.fullmatch(value) and len(Path(value).parts) > 2:
        yield key, value


def _own_places(folder: Path) -> list[str]:
    """Folders of this machine that its user's programs may have written into a file."""
    places = {folder.resolve(), Path.home(), Path.cwd(), Path(tempfile.gettempdir())}
    return sorted(f"{place}/" for place in places if len(place.parts) > 1)
