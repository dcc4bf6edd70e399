"""Rows of a data set: checked once, decoded when they are asked for."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa

from vgpo_lite.data_types import Outline, Sample
from vgpo_lite.datasets.columns import gold_answer, image_sources, is_unicode
from vgpo_lite.datasets.images import checked_size, decode_image
from vgpo_lite.datasets.marks import place_marks, with_choices
from vgpo_lite.datasets.refusals import EMPTY_QUESTION, NO_GOLD, NO_IMAGE, VIDEO, RefusalError
from vgpo_lite.errors import DataError

if TYPE_CHECKING:
    from vgpo_lite.datasets.columns import Columns, Folder
    from vgpo_lite.datasets.images import ImageSource
    from vgpo_lite.datasets.tables import Table


class Source(Protocol):
    """All rows of one split, good and bad, by their place in it."""

    @property
    def name(self) -> str:
        """Data set and split, such as `geo3k/train`."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names the content, equally on every machine."""
        ...

    def __len__(self) -> int: ...

    def sample(self, row: int) -> Sample:
        """The row, its images decoded; a RefusalError says why it cannot be used."""
        ...

    def outline(self, row: int) -> Outline:
        """The row without its pixels; a RefusalError says why it cannot be used."""
        ...


@dataclass(frozen=True, kw_only=True)
class TableSource:
    """The rows of a table, read through a mapping of its columns.

    Attributes:
        name: Data set and split.
        fingerprint: Hash that names the content: files, or repository, commit and split.
        table: The cells.
        columns: Which of them make a sample.
        folder: Where names of image files may lead; None: nowhere.
        needs_image: Whether a row without an image is refused.
        needs_gold: Whether a row without an answer is refused.
    """

    name: str
    fingerprint: str
    table: Table
    columns: Columns
    folder: Folder | None
    needs_image: bool
    needs_gold: bool

    def __len__(self) -> int:
        return len(self.table)

    def sample(self, row: int) -> Sample:
        """The row, its images decoded."""
        question, sources, answer = self._content(row)
        return Sample(
            sample_id=f"{self.name}/{row}",
            question=question,
            images=tuple(decode_image(source) for source in sources),
            answer=answer,
            columns=self._other_columns(row, answer),
        )

    def outline(self, row: int) -> Outline:
        """The row with the sizes of its images, read from their headers."""
        question, sources, answer = self._content(row)
        sizes = tuple(checked_size(source) for source in sources)
        return Outline(sample_id=f"{self.name}/{row}", question=question, image_sizes=sizes, answer=answer)

    def _content(self, row: int) -> tuple[str, list[ImageSource], str | None]:
        """Question with its marks placed, images in the order of the marks, and the gold."""
        if any(self.table.cell(row, column) for column in self.columns.videos):
            raise RefusalError(VIDEO, "the row holds a video")
        question = self._cell(row, self.columns.question)
        if not isinstance(question, str):
            kind = "absent" if question is None else f"a {type(question).__name__}"
            raise RefusalError(EMPTY_QUESTION, f"the question is {kind}, expected a text")
        if not is_unicode(question):
            raise RefusalError(EMPTY_QUESTION, "the question holds half a character (a lone surrogate)")
        written = self._cell(row, self.columns.answer)
        answer = gold_answer(written)
        options = self._cell(row, self.columns.choices)
        if isinstance(options, list) and options:
            question, answer = with_choices(question, answer, [str(option) for option in options])
        if answer is None and self.needs_gold:
            shown = reprlib.repr(written)
            raise RefusalError(NO_GOLD, f"column {self.columns.answer} holds {shown}, no answer that can be right")
        sources = image_sources(self._cell(row, self.columns.image), self.folder)
        if not sources and self.needs_image:
            raise RefusalError(NO_IMAGE, f"column {self.columns.image} is empty")
        question, order = place_marks(question, len(sources))
        return question, [sources[place] for place in order], answer

    def _cell(self, row: int, column: str | None) -> object:
        return None if column is None else self.table.cell(row, column)

    def _other_columns(self, row: int, answer: str | None) -> dict[str, object]:
        """The row as user reward functions see it: its own columns without media, and the gold under both names."""
        skipped = {self.columns.image, *self.columns.videos}
        cells = {name: self.table.cell(row, name) for name in self.table.columns if name not in skipped}
        gold = {"answer": answer, "solution": answer}
        return gold | {name: value for name, value in cells.items() if not _holds_bytes(value)}


def _holds_bytes(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_bytes(part) for part in value.values())
    if isinstance(value, list):
        return any(_holds_bytes(part) for part in value)
    return isinstance(value, bytes | memoryview | pa.Buffer)


@dataclass(frozen=True, kw_only=True)
class SampleSource:
    """Rows that are made, not stored: they are what they are, and none is bad."""

    name: str
    fingerprint: str
    count: int
    make: Callable[[int], Sample]

    def __len__(self) -> int:
        return self.count

    def sample(self, row: int) -> Sample:
        """The row, drawn."""
        return self.make(row)

    def outline(self, row: int) -> Outline:
        """The row, drawn and measured."""
        made = self.make(row)
        sizes = tuple((image.height, image.width) for image in made.images)
        return Outline(sample_id=made.sample_id, question=made.question, image_sizes=sizes, answer=made.answer)


class Rows:
    """Rows that passed the check, in a fixed order. `rows[i]` decodes row i anew each time.

    What has been read of them is kept: about a kilobyte per row, no pixels.

    Attributes:
        name: Data set and split, such as `geo3k/train`.
        indices: Place of each row in its split.
    """

    def __init__(
        self,
        source: Source,
        indices: Sequence[int] | np.ndarray,
        *,
        outlines: dict[int, Outline] | None = None,
        content: str = "",
    ) -> None:
        self._source = source
        self._outlines = {} if outlines is None else outlines
        self._content = content
        self.name = source.name
        self.indices = np.asarray(indices, dtype=np.int64)

    @property
    def fingerprint(self) -> str:
        """Hash of the content and of which rows of it these are, in which order; equal on every machine.

        Questions, golds and the sizes of images count, and what names the content: commit and split, or the table's
        files. The pixels of image files beside a table do not.
        """
        digest = hashlib.sha256(f"{self._source.fingerprint}/{self._content}".encode())
        digest.update(self.indices.astype("<i8").tobytes())
        return digest.hexdigest()[:32]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        """Read and decode one row.

        Raises:
            DataError: The row's images turn out to be damaged behind their headers, or its file has changed.
            IndexError: There is no such row.
        """
        row = int(self.indices[index])
        try:
            return self._source.sample(row)
        except RefusalError as error:
            raise DataError(
                f"{self.name}/{row} cannot be used: {error}; leave it out, or repair the data set"
            ) from error

    def outline(self, index: int) -> Outline:
        """One row without its pixels, as the check has found it.

        Raises:
            IndexError: There is no such row.
        """
        row = int(self.indices[index])
        if row not in self._outlines:
            self._outlines[row] = self._source.outline(row)
        return self._outlines[row]

    def outlines(self) -> Iterator[Outline]:
        """All rows in order, without decoding their images."""
        return (self.outline(index) for index in range(len(self)))

    def keep(self, places: Sequence[int] | np.ndarray) -> Rows:
        """These rows alone, by their places here."""
        chosen = self.indices[np.asarray(places, dtype=np.int64)]
        return Rows(self._source, chosen, outlines=self._outlines, content=self._content)

    def in_private_order(self) -> np.ndarray:
        """The places of these rows in an order that the content alone decides: no seed, no other row.

        Which rows are held out therefore stays the same from run to run, and a row that is dropped moves no other.
        """
        name = self._source.fingerprint
        ranks = [hashlib.sha256(f"{name}/{row}".encode()).digest() for row in self.indices.tolist()]
        return np.array(sorted(range(len(ranks)), key=ranks.__getitem__), dtype=np.int64)
