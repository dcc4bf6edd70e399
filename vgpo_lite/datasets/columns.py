"""Which column of a data set is the question, the image and the answer; and what its cells mean."""

from __future__ import annotations

import base64
import binascii
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

import pyarrow as pa

from vgpo_lite.config.problems import nearest
from vgpo_lite.datasets.refusals import FOREIGN_IMAGE, MISSING_IMAGE, NAMED_IMAGE, NO_GOLD, UNDECODABLE, RefusalError
from vgpo_lite.errors import ConfigError

if TYPE_CHECKING:
    from vgpo_lite.config.schema import DataConfig
    from vgpo_lite.datasets.images import ImageSource

QUESTIONS = ("problem", "question", "prompt")
IMAGES = ("images", "image")
FILE_NAMES = ("file_names", "file_name")
"""Columns that name image files in the metadata of image folders, as the `datasets` library has them."""
ANSWERS = ("answer", "solution")
VIDEOS = ("videos", "video")

_OTHER = "passed to your own rewards"
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_DATA_ADDRESS = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns that make a sample; None where the data set has no such column and needs none."""

    question: str
    image: str | None
    answer: str | None
    choices: str | None
    videos: tuple[str, ...]

    def roles(self, found: Sequence[str]) -> dict[str, str]:
        """What each column of a data set serves as.

        >>> Columns(question="problem", image=None, answer="gold", choices=None, videos=()).roles(["gold", "id"])
        {'gold': 'answer', 'id': 'passed to your own rewards'}
        """
        named = {self.question: "question", self.image: "image", self.answer: "answer", self.choices: "choices"}
        return {name: "video" if name in self.videos else named.get(name, _OTHER) for name in found}


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Where the rows of a local table may name image files.

    Attributes:
        path: Names are relative to it.
        boundary: No file outside it is read, whatever links there are; the folder itself, or the part of the hub's
            cache that holds the folder's data set.
    """

    path: Path
    boundary: Path


def map_columns(found: Sequence[str], data: DataConfig, *, needs_gold: bool, video_columns: Sequence[str]) -> Columns:
    """Find the columns of a data set.

    Args:
        found: The columns it has.
        data: Names in `question_column` and its like win; without them the usual names are tried in order.
        needs_gold: Whether a data set without answers is useless.
        video_columns: Columns that hold videos by their type.

    Raises:
        ConfigError: A named column does not exist, or none of the usual names does; all such problems at once.
    """
    videos = tuple(name for name in found if name in VIDEOS or name in video_columns)
    problems: list[str] = []

    def column(role: str, named: str | None, usual: Sequence[str], *, needed: bool) -> str | None:
        try:
            return _column(found, role, named, usual, needed=needed)
        except ConfigError as error:
            problems.append(str(error))
            return None

    needs_image = data.require_image and not videos
    image = column("image", data.image_column, (*IMAGES, *FILE_NAMES), needed=needs_image)
    if videos and (image in videos or (image is None and data.require_image)):
        problems.append(
            f"column {videos[0]} holds videos; images are expected, in a column images or image, or the one that "
            f"data.image_column names. Columns found: {', '.join(found)}."
        )
    question = column("question", data.question_column, QUESTIONS, needed=True)
    answer = column("answer", data.answer_column, ANSWERS, needed=needs_gold)
    choices = column("choices", data.choices_column, (), needed=False)
    if question is None or problems:
        raise ConfigError("\n".join(problems))
    return Columns(question=question, image=image, answer=answer, choices=choices, videos=videos)


def _column(found: Sequence[str], role: str, named: str | None, usual: Sequence[str], *, needed: bool) -> str | None:
    listed = f"Columns found: {', '.join(found) or 'none'}"
    if named is not None:
        if named in found:
            return named
        near = nearest(named, found)
        hint = f" Did you mean {near}?" if near else ""
        raise ConfigError(f"data.{role}_column is {named}, which the data set does not have. {listed}.{hint}")
    for name in usual:
        if name in found:
            return name
    if not needed:
        return None
    near = next((near for near in (nearest(name, found) for name in usual) if near), None)
    hint = f" Perhaps {near} is meant: data.{role}_column={near}." if near else f" Name one: data.{role}_column=NAME."
    raise ConfigError(f"no column {_either(usual)} for the {role}. {listed}.{hint}")


def _either(names: Sequence[str]) -> str:
    shown = [name for name in names if name not in FILE_NAMES]
    return f"{', '.join(shown[:-1])} or {shown[-1]}"


def gold_answer(value: object) -> str | None:
    """The gold as text, an `<answer>` tag around it removed; None where there is none.

    >>> gold_answer("<answer> 3 </answer>"), gold_answer(2.0), gold_answer(["x"]), gold_answer("  ")
    ('3', '2', 'x', None)

    Raises:
        RefusalError: The cell is neither a text nor a number.
    """
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool | int | float):
        return str(value)
    if not isinstance(value, str):
        found = f"{type(value).__name__}, {reprlib.repr(value)}"
        raise RefusalError(NO_GOLD, f"the answer is a {found}; expected a text or a number")
    if not is_unicode(value):
        raise RefusalError(NO_GOLD, "the answer holds half a character (a lone surrogate)")
    tagged = _ANSWER_TAG.findall(value)
    return (tagged[-1] if tagged else value).strip() or None


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON can spell half a character, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def image_sources(value: object, folder: Folder | None) -> list[ImageSource]:
    """The images of one cell: none, one, or a list.

    Bytes count as they are, also in the `{"bytes": ..., "path": ...}` of the `datasets` library and as a
    `data:image/...;base64,` text. Names of files are followed only where `folder` is given, and only into it.

    Args:
        value: The cell.
        folder: The folder of a local table, whose cells may name files beside it; None: names are refused.

    Raises:
        RefusalError: The cell names an image instead of holding it, or names a file outside the folder.
    """
    if value is None or (isinstance(value, str) and not value):
        return []
    if isinstance(value, list | tuple):
        return [source for cell in value for source in image_sources(cell, folder)]
    if isinstance(value, Mapping):
        held = value.get("bytes")
        return image_sources(value.get("path") if held is None else held, folder)
    if isinstance(value, bytes | bytearray | memoryview | pa.Buffer):
        return [bytes(value) if isinstance(value, bytearray) else value]
    if not isinstance(value, str):
        raise RefusalError(UNDECODABLE, f"the image is a {type(value).__name__}, expected bytes")
    address = _DATA_ADDRESS.match(value)
    if address:
        return [_decoded(value[address.end() :])]
    if folder is None:
        raise RefusalError(NAMED_IMAGE, f"{value[:80]!r}; paths and addresses inside rows are not followed")
    return [file_inside(folder, value)]


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusalError(UNDECODABLE, f"not base64: {error}") from error


def file_inside(folder: Folder, name: str) -> Path:
    """The regular file that a row names, inside its data set's folder and nowhere else.

    Raises:
        RefusalError: The name is an address, absolute, climbs with `..`, leaves through a link, or is no file.
    """
    shown = repr(name[:80])
    parts = PurePosixPath(name).parts + PureWindowsPath(name).parts
    if (
        "://" in name
        or "\0" in name
        or ".." in parts
        or PurePosixPath(name).is_absolute()
        or PureWindowsPath(name).drive
    ):
        raise RefusalError(FOREIGN_IMAGE, f"{shown}; expected a name relative to the data set's folder")
    try:
        path = (folder.path / name).resolve(strict=True)
        inside, regular = path.is_relative_to(folder.boundary.resolve()), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise RefusalError(MISSING_IMAGE, shown) from error
    if not inside:
        raise RefusalError(FOREIGN_IMAGE, f"{shown} is a link out of the folder")
    if not regular:
        raise RefusalError(MISSING_IMAGE, f"{shown} is no file")
    return path
