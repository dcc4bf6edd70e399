r"""Algebra on answers: math-verify, and the guards that keep a number from being answered by something else.

Imported only where it may hang or crash: in the grading server's workers. A gold that is a number is matched by a
number alone. math-verify by itself takes `3=4`, `4,4`, `[4,4]`, `4\%` and `x \in \{4\}` for 4.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Basic, Expr, Float, MatrixBase, Symbol

from vgpo_lite.rewards.answers import exact_number, normalised, same_number

logging.getLogger("math_verify").setLevel(logging.CRITICAL)
logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)

Parsed = Basic | MatrixBase | str

CLEARLY_DIFFERENT = 1e-5
"""Two numbers further apart than this cannot be equal after rounding to six decimals; `simplify` need not be asked."""

_EQUALS = re.compile(r"(?<![<>!\\:])=|\\(?:approx|simeq|equiv|doteq)(?![A-Za-z])|≈")
_PERCENT = re.compile(r"%|percent|\bpct\b", re.IGNORECASE)
_NO_NUMBER = re.compile(r"\[|\\\{|\\lbrack|\\lbrace|\\\\|\\pm|\\mp|±|[0-9]\s+[0-9]")
_BRACKETED_LIST = re.compile(r"\(.*[,;].*\)", re.DOTALL)
_WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|operatorname)\{[^{}]*\}")
_NO_NAME = re.compile(r"^\s*[0-9.]|[-+*/^<>,;]|\\(?:frac|sqrt|cdot|times|div|pm|mp|sum|int|prod)")

WARM_UP = (
    (r"\frac{3}{4}", "0.75"),
    (r"2\sqrt{221}", r"\sqrt{884}"),
    (r"2\sqrt{3}", r"3\sqrt{2}"),
    (r"6\pi", r"18 \text{ cm}"),
    (r"60^\circ", r"\angle ABC = 60^{\circ}"),
    (r"x^2+2x+1", r"\left(x+1\right)^2"),
    (r"(1, -2)", r"(1,2)"),
    (r"\{1, 2\}", r"2, 1"),
    (r"[0, 1)", r"(0, 1]"),
    (r"x \le 3", r"3 \geq x"),
    (r"25\%", r"0.25"),
    (r"x = 5", "5"),
    (r"\frac{\sqrt{3}}{2}", r"\sin(60^\circ)"),
    (r"10^{-3}", r"\frac{1}{1000}"),
    (r"\log_2 8", "3"),
    (r"y = 2x + 1", r"y = 2x - 1"),
    (r"x^2 - 4", r"(x-2)(x+2)"),
    (r"x^2 + 1", r"x^2 - 1"),
    (r"x > 3", r"x < 3"),
    (r"\frac{1}{x}", r"x^{-1}"),
    (r"(2, \infty)", r"(3, \infty)"),
    (r"\frac{9}{16}", r"\left(\frac{3}{4}\right)^2"),
    (r"\frac{5}{6}", r"\frac{1}{2} + \frac{1}{3}"),
    (r"1.5 \times 10^3", "1500"),
    (r"36 - 9\pi", r"9(4 - \pi)"),
    ("7", "|-7|"),
    ("6", "3!"),
    (r"-\frac{a+b}{2c}", r"\frac{a-b}{2c}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"),
)
"""Pairs that walk through the grammar once, so that forked workers inherit a parser which has seen it."""


def equivalent(gold: str, answer: str) -> bool:
    r"""Say whether an answer means what the gold means.

    Where the gold is a number, the answer must be one number too: an expression without free symbols that is no list,
    set, interval, matrix or percentage. It may be named (`x = 4`, `\angle A = 40^\circ`) or derived (`2 + 2 = 4`);
    every other part of a chain of equations must then be a name or the same number. Any other gold is math-verify's.

    Raises:
        Exception: Whatever sympy raises on text that it cannot work with; the answer is then wrong.
    """
    expected = _gold(normalised(gold))
    if not expected:
        return False
    if not _is_number(expected[0]) or _PERCENT.search(gold):
        return verify(expected, _answer(normalised(answer)), timeout_seconds=None)
    *names, value = _EQUALS.split(normalised(answer))
    return _is_value(gold, expected, value) and all(_is_name(name) or _is_value(gold, expected, name) for name in names)


def _is_value(gold: str, expected: list[Parsed], text: str) -> bool:
    """Say whether a text is a number, and the expected one."""
    text = normalised(text)
    expected_number, given_number = exact_number(normalised(gold)), exact_number(text)
    if expected_number and given_number:
        return same_number(expected_number, given_number)
    if _PERCENT.search(text) or _NO_NUMBER.search(text) or _BRACKETED_LIST.fullmatch(text):
        return False
    given: list[Parsed] = [value for value in _answer(text) if not isinstance(value, str)]
    if not given or not _is_number(given[0]):
        return False
    if _clearly_different(expected[0], given[0]):
        return False
    return verify(expected, given, timeout_seconds=None)


def _is_name(text: str) -> bool:
    """Say whether the left side of an equation only names the right side: blank, or without arithmetic or a number."""
    return not _NO_NAME.search(_WORDS.sub("w", text))


def _is_number(value: Parsed) -> bool:
    """Say whether a parsed value is one number, infinity included."""
    return isinstance(value, Expr) and not isinstance(value, Symbol) and bool(value.is_number)


def _clearly_different(expected: Parsed, given: Parsed) -> bool:
    """Say whether evaluation alone tells two numbers apart; False where it cannot say."""
    if not isinstance(expected, Expr) or not isinstance(given, Expr):
        return False
    gap = abs(expected.doit() - given.doit()).evalf(15)
    return isinstance(gap, Float) and bool(gap > CLEARLY_DIFFERENT)


@lru_cache(maxsize=64)
def _gold(text: str) -> list[Parsed]:
    """Parse a gold, wrapped in dollar signs: bare LaTeX would be read as the first plain number in it."""
    configs = [LatexExtractionConfig(), ExprExtractionConfig()]
    return parse(f"${text}$", extraction_config=configs, parsing_timeout=None)  # pyright: ignore[reportArgumentType]


@lru_cache(maxsize=256)
def _answer(text: str) -> list[Parsed]:
    """Parse an answer as a whole: no plain number is picked out of text that is no mathematics."""
    return parse(f"${text}$", extraction_config=[LatexExtractionConfig()], parsing_timeout=None)  # pyright: ignore[reportArgumentType]
