"""What the schema says about each setting, in a form that readers, messages and documents share."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from vgpo_lite.config.schema import RunConfig, Section

NULL_WORDS = frozenset({"", "~", "null", "Null", "NULL", "None"})
TRUE_WORDS = frozenset({"true", "yes", "on"})
FALSE_WORDS = frozenset({"false", "no", "off"})

Shape = Mapping[str, object]
"""One alternative of a setting's type, as JSON Schema words it."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One key of the configuration.

    Attributes:
        key: Its full name, sections joined by dots: `focus.beta`.
        shapes: The alternatives of its type.
        default: Its value where nothing sets it.
        meaning: What it does, as the schema documents it.
    """

    key: str
    shapes: tuple[Shape, ...]
    default: object
    meaning: str

    @property
    def expected(self) -> str:
        """The values it accepts, in words.

        >>> settings()["learning_rate"].expected
        'a number >= 0'
        >>> settings()["memory.rows_per_micro_batch"].expected
        'a whole number >= 1, or auto'
        """
        words = [_words(shape) for shape in self.shapes]
        return words[0] if len(words) == 1 else f"{', '.join(words[:-1])}, or {words[-1]}"

    @property
    def choices(self) -> tuple[str, ...]:
        """The words it accepts, where its type is a choice of words."""
        named = [shape for shape in self.shapes if "enum" in shape or "const" in shape]
        return tuple(str(word) for shape in named for word in _allowed(shape))

    def read(self, text: str, *, quoted: bool = False) -> object:
        """Turn text into a value by the setting's own type, so that no guess of YAML 1.1 is in the way.

        `5e-6` is a number for a number and a name for a name; `no` is False for a switch and a word for a choice.
        Text that fits no alternative comes back as it is, for the schema to refuse.

        Args:
            text: The scalar as written.
            quoted: Whether it stood in quotes: then it is never null.

        >>> settings()["learning_rate"].read("5e-6")
        5e-06
        >>> settings()["revision"].read("12e4567")
        '12e4567'
        """
        nullable = any(shape.get("type") == "null" for shape in self.shapes)
        if not quoted and text in NULL_WORDS and (nullable or not self.choices):
            return None
        values = (_read_as(shape, text) for shape in self.shapes)
        return next((value for value in values if value is not None), text)

    def read_entry(self, text: str) -> object:
        """Turn the text of one entry of a table into a number, or leave it for the schema to refuse."""
        number = _number(text)
        return text if number is None else number

    @property
    def is_table(self) -> bool:
        """Whether its value is a mapping of names to numbers rather than a single value."""
        return any(shape.get("type") == "object" for shape in self.shapes)


@cache
def settings() -> Mapping[str, Setting]:
    """Every setting by its full name, in the order of the schema."""
    return {setting.key: setting for setting in _settings_of(RunConfig, "")}


@cache
def sections() -> Mapping[str, str]:
    """What each section is for, by its name."""
    return {
        name: (field.annotation.__doc__ or "").strip()
        for name, field in RunConfig.model_fields.items()
        if _is_section(field.annotation)
    }


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _settings_of(section: type[Section], prefix: str) -> list[Setting]:
    properties = section.model_json_schema()["properties"]
    found: list[Setting] = []
    for name, field in section.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            found += _settings_of(annotation, f"{prefix}{name}.")
            continue
        shape = properties[name]
        found.append(
            Setting(
                key=prefix + name,
                shapes=tuple(shape.get("anyOf", [shape])),
                default=field.get_default(call_default_factory=True),
                meaning=field.description or "",
            )
        )
    return found


def _allowed(shape: Shape) -> list[object]:
    words = shape.get("enum", [shape.get("const")])
    return list(words) if isinstance(words, list) else []


def _words(shape: Shape) -> str:
    if "const" in shape:
        return str(shape["const"])
    if "enum" in shape:
        return f"one of {', '.join(str(word) for word in _allowed(shape))}"
    kind = str(shape["type"])
    nouns = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "string": "text",
        "null": "null",
        "object": "a mapping of names to numbers",
    }
    return nouns[kind] + _range(shape)


def _range(shape: Shape) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f" {sign} {shape[name]:,}" for name, sign in signs.items() if name in shape]
    return " and".join(bounds)


def _read_as(shape: Shape, text: str) -> object | None:
    """The value of `text` under one alternative, or None where it does not fit."""
    kind = shape.get("type")
    lowered = text.lower()
    if "enum" in shape or "const" in shape:
        return text if text in _allowed(shape) else None
    if kind == "boolean" and lowered in TRUE_WORDS | FALSE_WORDS:
        return lowered in TRUE_WORDS
    if kind == "integer":
        return _whole(text)
    if kind == "number":
        return _number(text)
    return text if kind == "string" else None


def _whole(text: str) -> int | None:
    """A whole number, also when written `401_408`, `401,408` or `1e3`."""
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+", text):
        text = text.replace(",", "")
    value = _number(text)
    if value is None or not value.is_integer() or abs(value) >= 2**53:  # beyond it a float names no single integer
        return None
    return int(value)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
