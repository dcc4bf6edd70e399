"""One layer of a configuration: what a recipe, the `--set` options or the flags say, each value with its place.

Readers never stop at the first mistake: a layer carries its problems, so that all of them are told at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import yaml

from vgpo_lite.config.problems import Problem, shown, unknown_key
from vgpo_lite.config.settings import NULL_WORDS, sections, settings

_PLAIN = ("str", "int", "float", "bool", "null", "seq", "map", "merge", "timestamp")
PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in _PLAIN)
"""What YAML itself makes of values that are written without a tag."""
LARGEST_RECIPE_BYTES = 1_000_000
"""A recipe is a page of text; what is larger was named by mistake."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What one source says.

    Attributes:
        values: Values by the full key of their setting.
        sources: The place of each value.
        problems: What could not be read.
    """

    values: Mapping[str, object] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def without(self, keys: frozenset[str]) -> Layer:
        """The same layer, silent about some settings."""
        return Layer(
            values={key: value for key, value in self.values.items() if key not in keys},
            sources={key: source for key, source in self.sources.items() if key not in keys},
            problems=self.problems,
        )


def read_recipe(path: Path, name: str) -> Layer:
    """Read a recipe file.

    Args:
        path: The file.
        name: How messages call it.
    """
    expected = "a page of YAML, one `key: value` a line"
    try:
        if path.stat().st_size > LARGEST_RECIPE_BYTES:
            return _unreadable(f"{name} holds {path.stat().st_size:,} bytes", expected)
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError:
        return _unreadable(f"{name} is not UTF-8 text", expected)
    except OSError as error:
        return _unreadable(f"{name} cannot be read: {error.strerror}")
    except RecursionError:
        return _unreadable(f"{name} is nested too deeply", expected)
    except yaml.YAMLError as error:
        return _syntax_problem(error, name)
    if root is None or _is_empty(root):
        return Layer()
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else f"only {shown(root.value)}"
        return _unreadable(f"{name} holds {kind}", "a mapping of settings, such as `learning_rate: 5e-6`")
    reader = _Reader(name)
    reader.read(root, "")
    return reader.layer()


def read_overrides(overrides: Sequence[str]) -> Layer:
    """Read `a.b=value` as given to `--set`; of two for one key the last counts.

    `reward.functions.format=0.2` adds one entry to a table; `reward.functions={accuracy: 1}` replaces it.
    """
    reader = _Reader("")
    for override in overrides:
        written, equals, text = override.partition("=")
        key, entry = _split_entry(written.strip())
        source, text = f"--set {override}", text.strip()
        if not equals or not key:
            reader.problems.append(
                Problem(text=f"--set {shown(override)} has no value", expected="KEY=VALUE, such as focus.beta=0.2")
            )
        elif entry:
            earlier = reader.values.get(key, Entries())
            addition = {entry: settings()[key].read_entry(text)}
            kind = type(earlier) if isinstance(earlier, dict) else Entries
            reader.put(key, kind({**(earlier if isinstance(earlier, dict) else {}), **addition}), source)
        elif key in settings() and settings()[key].is_table:
            _read_table(reader, key, text, source)
        else:
            quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
            reader.put_text(key, text[1:-1] if quoted else text, source, quoted=quoted)
    return reader.layer()


def read_flags(flags: Mapping[str, object], style: str) -> Layer:
    """Read values given by name, as flags of a command or arguments of a function.

    Args:
        flags: Values by key; a section may be given as a mapping. None says nothing.
        style: How messages call one: `--` for flags of a command, anything else stands before the name.
    """
    reader = _Reader("")
    for name, value in flags.items():
        section = value if name in sections() and isinstance(value, Mapping) else None
        parts = {name: value} if section is None else {f"{name}.{key}": part for key, part in section.items()}
        for key, part in parts.items():
            flag = key.rpartition(".")[2].replace("_", "-")
            source = f"--{flag}" if style == "--" else f"{style}{name}"
            if isinstance(part, str):
                reader.put_text(key, part, source, quoted=True)
            elif part is not None:
                reader.put(key, str(part) if isinstance(part, PurePath) else part, source)
    return reader.layer()


class Entries(dict[str, object]):
    """Entries that join a table of the layers below instead of replacing it."""


class _Reader:
    """Gathers the values, places and problems of one layer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: dict[str, object] = {}
        self.sources: dict[str, str] = {}
        self.problems: list[Problem] = []

    def layer(self) -> Layer:
        return Layer(values=self.values, sources=self.sources, problems=tuple(self.problems))

    def put(self, key: str, value: object, source: str) -> None:
        """Note a value, or the problem that its key has."""
        if key in settings():
            self.values[key], self.sources[key] = value, source
        elif key in sections():
            inside = ", ".join(name.partition(".")[2] for name in settings() if name.startswith(f"{key}."))
            self.problems.append(
                Problem(text=f"{key} is {shown(value)}", source=source, expected=f"settings inside it: {inside}")
            )
        else:
            self.problems.append(unknown_key(key, source))

    def put_text(self, key: str, text: str, source: str, *, quoted: bool) -> None:
        """Note a value written as text."""
        self.put(key, settings()[key].read(text, quoted=quoted) if key in settings() else text, source)

    def read(self, node: yaml.MappingNode, prefix: str) -> None:
        """Note what a mapping of a recipe says; sections are followed."""
        for key_node, value_node in node.value:
            key = prefix + _text(key_node)
            source = f"{self.name}, line {key_node.start_mark.line + 1}"
            tag = _strange_tag(value_node)
            if tag is not None:
                text = f"{key} has the tag {tag}"
                self.problems.append(Problem(text=text, source=source, expected="a plain value; tags are not read"))
            elif key in self.values:
                self.problems.append(Problem(text=f"{key} is set twice ({self.sources[key]} and {source})"))
            elif key in sections() and isinstance(value_node, yaml.MappingNode):
                self.read(value_node, f"{key}.")
            elif key in settings() and settings()[key].is_table and isinstance(value_node, yaml.MappingNode):
                self.put(key, self._table(key, value_node), source)
            elif isinstance(value_node, yaml.ScalarNode):
                if not (key in sections() and _is_empty(value_node)):  # a section whose lines are commented out
                    self.put_text(key, value_node.value, source, quoted=value_node.style is not None)
            else:
                self.put(key, _plain(value_node), source)

    def _table(self, key: str, node: yaml.MappingNode) -> dict[str, object]:
        table: dict[str, object] = {}
        for entry_node, value_node in node.value:
            entry = _text(entry_node)
            if entry in table:
                line = entry_node.start_mark.line + 1
                self.problems.append(Problem(text=f"{key} names {entry} twice", source=f"{self.name}, line {line}"))
            scalar = isinstance(value_node, yaml.ScalarNode)
            table[entry] = settings()[key].read_entry(value_node.value) if scalar else _plain(value_node)
        return table


def _read_table(reader: _Reader, key: str, text: str, source: str) -> None:
    """Note a whole table given to `--set`, in YAML's flow style."""
    try:
        node = yaml.compose(f"{key}: {text}", Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        reader.put(key, text, source)  # the schema then says what it expects
        return
    if isinstance(node, yaml.MappingNode):
        reader.values.pop(key, None)  # a later --set replaces an earlier one
        reader.read(node, "")
        reader.sources[key] = source


def _split_entry(written: str) -> tuple[str, str]:
    """A key, and the entry of its table that `written` names; an entry may hold dots."""
    for key, setting in settings().items():
        if setting.is_table and written.startswith(f"{key}."):
            return key, written[len(key) + 1 :]
    return written, ""


def _strange_tag(node: yaml.Node) -> str | None:
    """The tag of a value or of an entry of its table, where it is none of YAML's plain ones."""
    nodes = [node, *(value for _, value in node.value)] if isinstance(node, yaml.MappingNode) else [node]
    strange = [str(each.tag) for each in nodes if each.tag not in PLAIN_TAGS]
    return strange[0].replace("tag:yaml.org,2002:", "!!") if strange else None


def _text(node: yaml.Node) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else shown(_plain(node))


def _is_empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in NULL_WORDS


def _plain(node: yaml.Node, depth: int = 3) -> object:
    """A node as lists and mappings of text, to show it in a message; what lies deeper is left out."""
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if depth == 0:
        return "..."
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, depth - 1) for item in node.value[:6]]
    pairs = node.value[:6] if isinstance(node, yaml.MappingNode) else []
    return {str(_plain(key, depth - 1)): _plain(value, depth - 1) for key, value in pairs}


def _unreadable(text: str, expected: str = "") -> Layer:
    return Layer(problems=(Problem(text=text, expected=expected),))


def _syntax_problem(error: yaml.YAMLError, name: str) -> Layer:
    """What the YAML parser found, with its line; it stops at the first mistake."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return _unreadable(f"{name} is not YAML: {error}")
    mark, found = error.problem_mark, error.problem or error.context or "a mistake"
    advice = "; YAML indents with spaces, not tabs" if "'\\t'" in found else ""
    return _unreadable(f"{name}, line {mark.line + 1}, column {mark.column + 1} is not YAML: {found}{advice}")
