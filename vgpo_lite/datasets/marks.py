"""Where images stand in a question: `<image>` marks, the numbered ones of some data sets, or none."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vgpo_lite.data_types import IMAGE_MARK
from vgpo_lite.datasets.refusals import EMPTY_QUESTION, MARKS, VIDEO, RefusalError

if TYPE_CHECKING:
    from collections.abc import Sequence

VIDEO_MARK = "<video>"

_NUMBERED = re.compile(r"<image[ _-]?([0-9]{1,3})>")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def place_marks(question: str, images: int) -> tuple[str, tuple[int, ...]]:
    """The question with one `<image>` per image, and which image stands at each mark.

    A question without marks gets them in front. Numbered marks (`<image1>`, `<image_2>`, `<image 3>`) name images in
    the order of their numbers; the first mention of a number is where its image stands, later ones become words.

    >>> place_marks("How many?", 1)
    ('<image>How many?', (0,))
    >>> place_marks("Is <image_2> like <image_1>? In <image_2>,", 2)
    ('Is <image> like <image>? In image 2,', (1, 0))

    Args:
        question: As the data set has it.
        images: Images of the row, >= 0.

    Raises:
        RefusalError: The question is empty, asks for a video, or has another number of marks than there are images.
    """
    if VIDEO_MARK in question:
        raise RefusalError(VIDEO, "the question has a <video> mark")
    if not _NUMBERED.sub("", question).replace(IMAGE_MARK, "").strip():
        raise RefusalError(EMPTY_QUESTION, "the question holds no text")
    plain = question.count(IMAGE_MARK)
    numbers = [int(number) for number in _NUMBERED.findall(question)]
    if plain + len(numbers) == 0:
        return IMAGE_MARK * images + question, tuple(range(images))
    named = sorted(set(numbers))
    if plain == 0 and len(named) == images:
        return _number_by_number(question, named)
    if plain + len(numbers) == images:
        return _NUMBERED.sub(IMAGE_MARK, question), tuple(range(images))
    raise RefusalError(MARKS, f"{plain + len(numbers)} marks for {images} images")


def _number_by_number(question: str, named: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    order: list[int] = []

    def mark_or_words(match: re.Match[str]) -> str:
        place = named.index(int(match[1]))
        if place in order:
            return f"image {match[1]}"
        order.append(place)
        return IMAGE_MARK

    return _NUMBERED.sub(mark_or_words, question), tuple(order)


def with_choices(question: str, answer: str | None, options: Sequence[str]) -> tuple[str, str | None]:
    """A multiple-choice question with its options lettered, and the letter of the right one.

    Options that the question already lists as `(A) ...` are not listed again.

    >>> with_choices("Which?", "a cat", ["a dog", "a cat"])
    ('Which?\\n(A) a dog\\n(B) a cat\\nAnswer with the letter.', 'B')

    Args:
        question: The question.
        answer: The gold: the text of an option, its letter, or its number from 0. None: there is none.
        options: At most 26 texts; none: question and answer stay as they are.

    Returns:
        The question and the gold letter; None where the gold is none of the options.
    """
    if not options or len(options) > len(_LETTERS):
        return question, answer
    lettered = [f"({letter}) {option}" for letter, option in zip(_LETTERS, options, strict=False)]
    if not all(line in question for line in lettered):
        question = "\n".join([question, *lettered, "Answer with the letter."])
    return question, None if answer is None else _letter(answer, options)


def _letter(answer: str, options: Sequence[str]) -> str | None:
    texts = [option.strip() for option in options]
    if answer.strip() in texts:
        return _LETTERS[texts.index(answer.strip())]
    letter = answer.strip().strip("().").upper()
    if len(letter) == 1 and letter in _LETTERS[: len(options)]:
        return letter
    is_number = answer.isdecimal() and len(answer) <= 2
    return _LETTERS[int(answer)] if is_number and int(answer) < len(options) else None
