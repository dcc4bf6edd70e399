"""A configuration as YAML that repeats it, each value with where it came from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from vgpo_lite.config.recipes import existing_path
from vgpo_lite.config.schema import RunConfig
from vgpo_lite.config.settings import FALSE_WORDS, NULL_WORDS, TRUE_WORDS, sections, settings
from vgpo_lite.storage import replace_file

_OF_THE_PLACE = frozenset({"output", "report_to", "trust_remote_code", "device"})
"""What belongs to a machine or a person and not to a recipe; `trust_remote_code` no recipe may say."""
_ROW_FILES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv")

COMMENT_COLUMN = 44
"""Where the comments start, as far as the values leave room: most lines of a config are shorter."""


def write_config(config: RunConfig, path: str | os.PathLike[str]) -> None:
    """Write the resolved configuration so that `vgpo-lite train -r PATH` repeats the run.

    Every setting is written, so that a later version's defaults change nothing; comments say where each came from.
    The file appears whole or not at all.

    Raises:
        StorageError: The disk refuses.
    """
    comments = {key: config.sources.get(key, "default") for key in settings()}
    head = f"# Resolved configuration. Repeat the run: vgpo-lite train -r {path} -o ANOTHER_FOLDER\n"
    replace_file(Path(path), (head + render(config, comments)).encode())


def render(
    config: RunConfig,
    comments: Mapping[str, str],
    *,
    commented_out: bool = False,
    only: Collection[str] | None = None,
) -> str:
    """Settings of a configuration as YAML, with a comment after each value.

    Args:
        config: What to render.
        comments: What to say of a setting, by full key; one without gets none.
        commented_out: Whether each setting is switched off by a `#`, for the reader to switch some on.
        only: The settings to render, by full key; None: all.
    """
    values = {key: value for key, value in flat_values(config).items() if only is None or key in only}
    lines: list[str] = []
    section = ""
    for key, value in sorted(values.items(), key=lambda pair: "." in pair[0]):  # sections after single settings
        prefix, _, name = key.rpartition(".")
        if prefix != section:
            section = prefix
            lines += ["", f"{section}:  # {sections()[section].splitlines()[0].rstrip('.')}"]
        indent = ("  " if section else "") + ("# " if commented_out else "")
        line = f"{indent}{name}: {scalar(value) if not isinstance(value, Mapping) else table(value)}"
        comment = " ".join(comments.get(key, "").split())
        lines.append(f"{line:<{COMMENT_COLUMN - 1}} # {comment}" if comment else line)
    return "\n".join(lines) + "\n"


def flat_values(config: RunConfig) -> dict[str, object]:
    """All values of a configuration by full key, in the order of the schema."""
    nested = config.model_dump()
    flat: dict[str, object] = {}
    for key in settings():
        section, dot, name = key.rpartition(".")
        flat[key] = nested[section][name] if dot else nested[name]
    return flat


def shared_recipe(config: RunConfig) -> str:
    """Every setting that something set, or that differs from its default, as YAML for others to repeat the run with."""
    defaults, own = flat_values(RunConfig()), flat_values(config)
    changed = {key for key, value in own.items() if value != defaults[key]}
    kept = ({"model", "dataset"} | changed | set(config.sources)) - _OF_THE_PLACE
    return render(config, {}, only=kept).lstrip("\n")


def shareable(config: RunConfig, *, revision: str | None, data_revision: str | None) -> RunConfig:
    """The same settings for others: commits in the place of branches, and no folder of this machine.

    Args:
        config: The settings of a run.
        revision: Commit of its model on the hub; None: it comes from no hub.
        data_revision: The same of its data set.
    """
    functions = {_own_function(name): weight for name, weight in config.reward.functions.items()}
    own_data = None if config.data.id is None else own_name(config.data.id)
    return config.model_copy(
        update={
            "model": own_name(config.model),
            "model_id": None if config.model_id is None else own_name(config.model_id),
            "revision": revision,
            "adapter": None if config.adapter is None else own_name(config.adapter),
            "dataset": own_name(config.dataset),
            "output": None,
            "data": config.data.model_copy(update={"id": own_data, "revision": data_revision}),
            "reward": config.reward.model_copy(update={"functions": functions}),
        }
    )


def own_name(name: str) -> str:
    """A name as it is, a path without its folders.

    >>> own_name("Qwen/Qwen2-VL-2B-Instruct"), own_name("/home/me/rows.jsonl"), own_name("../my/rows.parquet")
    ('Qwen/Qwen2-VL-2B-Instruct', 'rows.jsonl', 'rows.parquet')
    """
    path = Path(name).expanduser()
    is_path = path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2 or path.suffix in _ROW_FILES
    return path.resolve().name if is_path or existing_path(name) is not None else name


def _own_function(name: str) -> str:
    file, colon, function = name.rpartition(":")
    return f"{Path(file).name}:{function}" if colon else name


def scalar(value: object) -> str:
    """A value as YAML that every parser reads as that value.

    >>> scalar(None), scalar(True), scalar(5e-6), scalar("no"), scalar("qwen2-vl-2b")
    ('null', 'true', '5.0e-06', '"no"', 'qwen2-vl-2b')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        digits = repr(value)
        return digits.replace("e", ".0e") if "e" in digits and "." not in digits else digits
    text = str(value)
    if isinstance(value, int) or _is_plain(text):
        return text
    quoted = json.dumps(text, ensure_ascii=False)  # a JSON string is a YAML string, but for what YAML folds
    return "".join(sign if sign.isprintable() else f"\\U{ord(sign):08x}" for sign in quoted)


def table(entries: Mapping[str, object]) -> str:
    """A mapping of names to numbers in YAML's flow style."""
    return "{" + ", ".join(f"{scalar(name)}: {scalar(value)}" for name, value in entries.items()) + "}"


def _is_plain(text: str) -> bool:
    """Whether text means itself in YAML without quotes: a name or a path that no parser takes for something else."""
    words = NULL_WORDS | TRUE_WORDS | FALSE_WORDS | {"y", "n"}
    return re.fullmatch(r"[A-Za-z_/][\w./-]*", text) is not None and not words & {text, text.lower()}
