r"""The text of answers: what a completion answers, and what can be decided without algebra.

Everything here is pure, runs in the trainer's own process and takes time linear in the text, whatever the text is. Only
pairs that string and number comparison leave open go to math-verify, in a process that can be killed.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

MAX_ANSWER_CHARACTERS = 2000
"""Longer answers are compared as strings alone. math-verify needs 1.9 s, nearly the time an answer has, for a sum of
symbols of 2,000 characters (measured on one core of an x86 server), so beyond it the verdict would be the clock's."""

MAX_NUMBER_CHARACTERS = 200
"""Longer numerals are left to math-verify: the time of reading digits grows with their square."""

FLOAT_DECIMALS = 6
"""Decimals are compared rounded to as many places as math-verify's `float_rounding` says, so that 0.333333 is 1/3."""

_BOX = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_WRAPPER = r"\\(?:text|textbf|textit|textrm|mathbf|mathrm|mathit|boldsymbol|bm|mbox)"
_WHOLE_WRAPPER = re.compile(_WRAPPER + r"\{")
_NUMBER_IN_WRAPPER = re.compile(_WRAPPER + r"\{\s*([0-9.,]+)\s*\}")
_SIGNS = str.maketrans(
    {"−": "-", "–": "-", "－": "-", "°": r"^\circ ", "％": "%", "，": ",", "．": ".", "（": "(", "）": ")"}
    | {chr(0xFF10 + digit): str(digit) for digit in range(10)}
)
_INTEGER = r"[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]{0,2}(?: [0-9]{3})+"
_DECIMAL = re.compile(rf"(?P<sign>[+-]?)(?:(?P<whole>{_INTEGER})(?P<rest>\.[0-9]*)?|(?P<bare>\.[0-9]+))")
_RATIO = re.compile(
    r"(?P<sign>[+-]?)(?:(?P<whole>[0-9]+)[ ]?(?=\\)|(?P<spaced>[0-9]+) (?=[0-9]))?"
    r"(?:\\frac\{(?P<top>[0-9]+)\}\{(?P<bottom>[0-9]+)\}|(?P<over>[0-9]+)/(?P<under>[0-9]+))"
)
_DEGREES = re.compile(r"\^(?:\\circ|\{\\circ\})$")
_CHOICE = re.compile(r"\(([A-Za-z])\)|([A-Za-z])[.):]?")
_LETTERS = re.compile(r"[^\W\d_]+(?:[ '’-][^\W\d_]+)*")
_WORD = re.compile(r"[^\W\d_]{3}")


class Number(NamedTuple):
    """A numeral read exactly.

    Attributes:
        value: The number it stands for.
        decimal: Whether it was written with a decimal point, so that it may be a rounded one.
    """

    value: Fraction
    decimal: bool


def boxed_answer(text: str) -> str | None:
    r"""Return what the last `\boxed{}` of a completion holds, without outer whitespace.

    Braces nest; escaped ones (`\{`) do not count. None where there is no box, where the last one was never closed (a
    completion that was cut has not answered yet) or where it is blank.

    >>> boxed_answer(r"So \boxed{1}. No: \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> boxed_answer("4") is None
    True
    """
    start = text.rfind(r"\boxed")
    while start >= 0:
        opening = _BOX.match(text, start)
        if opening:
            end = closing_brace(text, opening.end() - 1)
            return None if end is None else text[opening.end() : end].strip() or None
        start = text.rfind(r"\boxed", 0, start)
    return None


def closing_brace(text: str, opening: int) -> int | None:
    """Return the index of the brace that closes the one at `opening`, or None where it stays open."""
    depth = 0
    for brace in _BRACE.finditer(text, opening):
        if brace[0] == "{":
            depth += 1
        elif brace[0] == "}":
            depth -= 1
            if depth == 0:
                return brace.start()
    return None


def gold_answer(solution: object) -> str | None:
    r"""Return the answer a row holds as gold, or None where it holds none.

    A boxed answer inside a longer solution is its last box; dollar signs around the whole are dropped; numbers become
    text. None, blank text and anything that is neither text nor number is no gold.

    >>> gold_answer("$2 \\sqrt { 221 }$"), gold_answer(4), gold_answer("  ")
    ('2 \\sqrt { 221 }', '4', None)
    """
    if isinstance(solution, bool) or not isinstance(solution, str | int | float):
        return None
    text = str(solution).strip()
    if r"\boxed" in text:
        text = boxed_answer(text) or text
    while len(text) > 1 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    return text or None


def normalised(answer: str) -> str:
    r"""Return an answer without what does not change its meaning.

    Spacing commands, dollar signs, `\left`, sizes of fractions, wrappers around the whole (`\text{}`, braces, `\( \)`)
    and a final full stop go; minus and degree signs and full-width digits take one form. A space between a comma
    and a digit stays: `1, 234` is a list, `1,234` a number.

    >>> normalised(r"$\left( \dfrac12 , \sqrt { 3 } \right)$.")
    '(\\frac{1}{2},\\sqrt{3})'
    """
    text = answer.translate(_SIGNS).replace("\\$", "").replace("$", "").replace("\\%", "%")
    text = text.replace("\\ ", " ").replace("~", " ")
    text = re.sub(r"(?<=[0-9])(?:\{,\}|,\\!|\\,)(?=[0-9]{3}(?![0-9]))", ",", text)
    text = re.sub(r"\\(?:left|right)(?:\.|(?![A-Za-z]))|\\displaystyle(?![A-Za-z])", "", text)
    text = re.sub(r"(?<!\\)\\(?:[,;:!]|q?quad(?![A-Za-z]))", " ", text)
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}", text)
    text = _NUMBER_IN_WRAPPER.sub(r"\1", text)
    text = re.sub(r"\\$", "", " ".join(text.split()))
    text = re.sub(r" ?([^\w\s,]) ?", r"\1", text).replace(" ,", ",")
    return _unwrapped(text.rstrip(". "))


def _unwrapped(text: str) -> str:
    """Return the text inside wrappers that enclose all of it."""
    while True:
        opening = _WHOLE_WRAPPER.match(text)
        start = opening.end() - 1 if opening else 0
        if text[start : start + 1] == "{" and closing_brace(text, start) == len(text) - 1:
            text = text[start + 1 : -1].strip().rstrip(".")
        elif text.startswith((r"\(", r"\[")) and text.endswith((r"\)", r"\]")):
            text = text[2:-2].strip()
        else:
            return text


def exact_number(text: str) -> Number | None:
    r"""Return the number that a normalised text is, or None where it is anything else.

    Integers, decimals, ratios and mixed numbers, with or without thousands separators and a degree sign. Lists,
    intervals, percentages and numbers with other units are not numbers here.

    >>> exact_number("1,234"), exact_number(r"1\frac{1}{2}")
    (Number(value=Fraction(1234, 1), decimal=False), Number(value=Fraction(3, 2), decimal=False))
    >>> exact_number("1, 234") is None and exact_number("50%") is None
    True
    """
    if len(text) > MAX_NUMBER_CHARACTERS:
        return None
    text = _DEGREES.sub("", text)
    found = _DECIMAL.fullmatch(text)
    if found:
        digits = (found["whole"] or "0").replace(",", "").replace(" ", "")
        fraction = found["rest"] or found["bare"] or ""
        value = Fraction(digits + (fraction if len(fraction) > 1 else ""))
        return Number(-value if found["sign"] == "-" else value, len(fraction) > 1)
    found = _RATIO.fullmatch(text)
    if not found:
        return None
    bottom = int(found["bottom"] or found["under"])
    if bottom == 0:
        return None
    value = int(found["whole"] or found["spaced"] or 0) + Fraction(int(found["top"] or found["over"]), bottom)
    return Number(-value if found["sign"] == "-" else value, False)


def exact_point(text: str) -> tuple[Number, ...] | None:
    """Return the two or more numbers of a normalised text in brackets, or None where it is anything else.

    Brackets are round or square: a point, or an interval.

    >>> [str(number.value) for number in exact_point("(1,-2)") or ()]
    ['1', '-2']
    """
    if "," not in text or text[0] not in "([" or text[-1] not in ")]" or len(text) > MAX_NUMBER_CHARACTERS:
        return None
    numbers = [exact_number(part.strip()) for part in text[1:-1].split(",")]
    return tuple(number for number in numbers if number) if all(numbers) else None


def same_number(gold: Number, answer: Number) -> bool:
    """Say whether two numbers are equal: exactly, or rounded to `FLOAT_DECIMALS` places where one is a decimal."""
    if gold.value == answer.value:
        return True
    if not (gold.decimal or answer.decimal):
        return False
    return round(gold.value, FLOAT_DECIMALS) == round(answer.value, FLOAT_DECIMALS)


def quick_verdict(gold: str, answer: str | None) -> bool | None:
    r"""Decide a pair by strings and numbers alone; None where algebra must decide.

    In this order: no answer is wrong; equal text is right; overlong text is wrong; equal normalised text is right; two
    numbers, or two points or intervals of numbers, are compared as numbers; a letter of a choice may stand in brackets;
    words are compared without case.

    >>> quick_verdict("4", "4.0"), quick_verdict("4", "5"), quick_verdict("B", "(B)"), quick_verdict("4", "2+2")
    (True, False, True, None)
    """
    if answer is None or not answer.strip():
        return False
    if answer.strip() == gold.strip():
        return True
    if max(len(gold), len(answer)) > MAX_ANSWER_CHARACTERS:
        return False
    expected, given = normalised(gold), normalised(answer)
    if not given:
        return False
    expected_number, given_number = exact_number(expected), exact_number(given)
    if expected_number and given_number:
        return same_number(expected_number, given_number)
    if expected == given or (not expected_number and expected.replace(", ", ",") == given.replace(", ", ",")):
        return True
    expected_point, given_point = exact_point(expected), exact_point(given)
    if expected_point and given_point and expected[0] + expected[-1] == given[0] + given[-1]:
        return len(expected_point) == len(given_point) and all(map(same_number, expected_point, given_point))
    expected_choice, given_choice = _CHOICE.fullmatch(expected), _CHOICE.fullmatch(given)
    if expected_choice and given_choice:
        return (expected_choice[1] or expected_choice[2]).lower() == (given_choice[1] or given_choice[2]).lower()
    if _LETTERS.fullmatch(expected) and _LETTERS.fullmatch(given) and (_WORD.search(expected) or _WORD.search(given)):
        return expected.casefold() == given.casefold()
    return None
