"""Text as ids, where some of it is the model's own and some the user's: only in the former is a special token special.

A tokenizer cuts a text at the special tokens that it spells, and reads each stretch between them by itself. So a
stretch is read as one whoever wrote its parts: the line end that a chat template writes in front of a question belongs
with those that the question begins with.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from vgpo_lite.prompts.processor import Processor


class Part(NamedTuple):
    """A part of a prompt's text, and whether the model's chat template wrote it."""

    text: str
    is_own: bool


class _Cut(NamedTuple):
    """A special token: its id, and whether it swallows the blanks on its left and on its right."""

    id: int
    eats_left: bool
    eats_right: bool


class _Added(NamedTuple):
    """A tokenizer's added tokens, by their spelling: those at which texts are cut, and blank ones, which stay inside.

    Gemma's runs of line ends are such blanks: tokens of their own, in whoever's text they stand.
    """

    cuts: dict[str, _Cut]
    cut: re.Pattern[str]
    blanks: dict[str, int]
    blank: re.Pattern[str]


_NEVER = "(?!)"
_BLANKS_IN_FRONT, _BLANKS_BEHIND = re.compile(r"^[^\S\x1c-\x1f]+"), re.compile(r"[^\S\x1c-\x1f]+$")
"""What is blank to a tokenizer; Python counts four separators more."""

_known: WeakKeyDictionary[Processor, tuple[int, _Added]] = WeakKeyDictionary()
"""Of each processor in use: how large its vocabulary was when its added tokens were read, and these."""


def stretches(parts: Iterable[Part], processor: Processor) -> Iterator[str | int]:
    """The ids of the model's own special tokens, and between them stretches of text in which nothing is special.

    Args:
        parts: The whole text of a prompt, in order.
        processor: The model's.
    """
    added, stretch, last = _added(processor), "", _Cut(0, False, False)
    for part in parts:
        text, *cuts = added.cut.split(part.text) if part.is_own else [part.text]
        stretch += text
        for token, text in zip(cuts[::2], cuts[1::2], strict=True):
            cut = added.cuts[token]
            yield from _between(last, stretch, cut)
            yield cut.id
            stretch, last = text, cut
    yield from _between(last, stretch, _Cut(0, False, False))


def _between(left: _Cut, stretch: str, right: _Cut) -> Iterator[str]:
    """A stretch without what the tokens around it swallow; nothing where that is all."""
    stretch = _BLANKS_IN_FRONT.sub("", stretch) if left.eats_right else stretch
    stretch = _BLANKS_BEHIND.sub("", stretch) if right.eats_left else stretch
    if stretch:
        yield stretch


def plain_ids(text: str, processor: Processor) -> list[int]:
    """Token ids of a stretch in which nothing is special: the tokenizer's steps without its table of added tokens, but
    for those that are blank."""
    added, ids = _added(processor), []
    for place, piece in enumerate(added.blank.split(text)):
        ids += [added.blanks[piece]] if place % 2 else _read(piece, processor)
    return ids


def normal_text(text: str, processor: Processor) -> str:
    """A text in the form of Unicode that the tokenizer reads."""
    normalizer = processor.tokenizer.backend_tokenizer.normalizer
    return text if normalizer is None else normalizer.normalize_str(text)


def _read(text: str, processor: Processor) -> list[int]:
    backend = processor.tokenizer.backend_tokenizer
    normal, model = normal_text(text, processor), backend.model
    pieces = [(normal, ())] if backend.pre_tokenizer is None else backend.pre_tokenizer.pre_tokenize_str(normal)
    return [token.id for piece, _ in pieces for token in model.tokenize(piece)]


def _added(processor: Processor) -> _Added:
    """Read once for each processor: a tokenizer may have thousands, and gives them out slowly."""
    backend = processor.tokenizer.backend_tokenizer
    size, added = _known.get(processor, (0, None))
    if added is None or size != backend.get_vocab_size():
        added = _read_added(backend.get_added_tokens_decoder())
        _known[processor] = backend.get_vocab_size(), added
    return added


def _read_added(tokens: Mapping[int, Any]) -> _Added:
    blanks = {token.content: place for place, token in tokens.items() if token.content.isspace() and not token.special}
    cuts = {
        token.content: _Cut(place, token.lstrip, token.rstrip)
        for place, token in tokens.items()
        if token.content not in blanks
    }
    return _Added(cuts, _any_of(cuts), blanks, _any_of(blanks))


def _any_of(spellings: Iterable[str]) -> re.Pattern[str]:
    """Any of them, the longest first, in a group."""
    longest_first = sorted(spellings, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or _NEVER})")
