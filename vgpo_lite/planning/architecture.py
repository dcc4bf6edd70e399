"""What the sizes of a model follow from: the numbers in its config.json, whichever family wrote it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgpo_lite.errors import HardwareError, ModelError
from vgpo_lite.planning.towers import TOWERS, Linear, Vision

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIGS = Path(__file__).parent / "configs"
"""config.json of each preset, written down from memory of the models; their parameter counts are those of the hub."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A vision-language model: a tower and a decoder.

    Attributes:
        model_type: As config.json names it.
        hidden: Numbers of a token between layers.
        inner: Numbers of a token inside the MLP.
        layers: Decoder layers.
        heads: Heads of queries.
        kv_heads: Heads of keys and of values.
        head_size: Numbers of a head.
        vocabulary: Tokens there are.
        ties_head: Whether the head is the table of embeddings.
        projection_bias: Whether queries, keys and values have a bias.
        norms_heads: Whether queries and keys are normalized, head by head.
        layer_norms: Norms of a layer beside those.
        window: Tokens that layers with a window see; 0: no layer has one.
        vision: The tower.
    """

    model_type: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    ties_head: bool
    projection_bias: bool
    norms_heads: bool
    layer_norms: int = 2
    window: int = 0
    vision: Vision

    @property
    def query(self) -> int:
        """Numbers of a token's queries."""
        return self.heads * self.head_size

    @property
    def key(self) -> int:
        """Numbers of a token's keys, and of its values."""
        return self.kv_heads * self.head_size

    @property
    def layer_linears(self) -> tuple[Linear, ...]:
        """Those of one decoder layer: queries, keys, values, output, gate, up, down."""
        hidden, inner, bias = self.hidden, self.inner, self.projection_bias
        return (
            Linear(hidden, self.query, bias),
            Linear(hidden, self.key, bias),
            Linear(hidden, self.key, bias),
            Linear(self.query, hidden),
            Linear(hidden, inner),
            Linear(hidden, inner),
            Linear(inner, hidden),
        )

    @property
    def layer_parameters(self) -> int:
        """Of one decoder layer."""
        norms = self.layer_norms * self.hidden + self.norms_heads * 2 * self.head_size
        return norms + sum(linear.parameters for linear in self.layer_linears)

    @property
    def parameters(self) -> int:
        """Of the whole model; a tied head counts once."""
        tables = self.vocabulary * self.hidden * (1 if self.ties_head else 2)
        return tables + self.layers * self.layer_parameters + self.hidden + self.vision.parameters


_DECODERS = {
    "smolvlm": "llama",
    "internvl": "qwen2",
    "llava_onevision": "qwen2",
    "gemma3": "gemma3_text",
}
"""The text model's type where a configuration leaves it out."""

_TIED = ("internvl", "gemma3")
"""Whose head is the table of embeddings where a configuration does not say."""

_TIED_BY_TEXT = ("llava_onevision",)
"""Whose head is that as well where the text's part alone says so: the released configurations say no above it."""

BEYOND_FLOAT16 = frozenset({"gemma3"})
"""Whose states grow larger than float16 can hold, which ends at 65,504: 800,000 were reported of this decoder (unsloth,
pull request 4014)."""

_LEFT_OUT = {
    "gemma3_text": {
        "vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "sliding_window": 4096,
    },
}  # fmt: skip
"""What a text model's numbers are where its configuration leaves them out, as transformers fills them in."""


def architecture_of(config: Mapping[str, Any], name: str) -> Architecture:
    """Read a model's config.json, in the older flat form or with the text's part apart.

    Args:
        config: Its content.
        name: How messages call the model.

    Raises:
        ModelError: It lacks a number, or is of another architecture.
    """
    kind = config.get("model_type")
    if kind not in TOWERS:
        raise ModelError(f"{name}: models of type {kind!r} are not planned for; expected one of {', '.join(TOWERS)}")
    decoder = str(config.get("text_config", {}).get("model_type") or _DECODERS.get(kind, kind))
    text = {**config, **_LEFT_OUT.get(decoder, {}), **config.get("text_config", {})}
    try:
        heads = text["num_attention_heads"]
        return Architecture(
            model_type=str(kind),
            hidden=text["hidden_size"],
            inner=text["intermediate_size"],
            layers=text["num_hidden_layers"],
            heads=heads,
            kv_heads=text.get("num_key_value_heads") or heads,
            head_size=text.get("head_dim") or text["hidden_size"] // heads,
            vocabulary=text["vocab_size"],
            ties_head=_ties_head(config),
            projection_bias=bool(text.get("attention_bias", decoder.startswith("qwen2"))),
            norms_heads=decoder.startswith(("qwen3", "gemma3")),
            layer_norms=4 if decoder.startswith("gemma3") else 2,
            window=text["sliding_window"] if decoder.startswith("gemma3") else 0,
            vision=TOWERS[kind](config),
        )
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"{name}: its config.json cannot be planned with: {error!r} is missing or no number"
        ) from error


def is_beyond(model_type: str, dtype: str) -> bool:
    """Whether states of such a model grow larger than a format can hold."""
    return dtype == "float16" and model_type in BEYOND_FLOAT16


def check_format(model_type: str, dtype: str, name: str) -> None:
    """See that a model can be computed with in a format.

    Args:
        model_type: As config.json names it.
        dtype: `bfloat16`, `float16`, `float32`, or `auto`, which is not known yet.
        name: How messages call the model.

    Raises:
        HardwareError: Its states grow larger than float16 can hold, which is asked for.
    """
    if is_beyond(model_type, dtype):
        raise HardwareError(
            f"{name} computes numbers that float16 cannot hold, so it needs a card with bfloat16. On one without, set "
            "dtype=float32 (slower, and what is not quantized takes twice the memory), or choose another model."
        )


def _ties_head(config: Mapping[str, Any]) -> bool:
    kind, by_text = config["model_type"], config.get("text_config", {}).get("tie_word_embeddings", False)
    above = config.get("tie_word_embeddings", kind in _TIED or by_text)
    return bool(above or (kind in _TIED_BY_TEXT and by_text))


@cache
def preset_architectures() -> Mapping[str, Architecture]:
    """The architecture of each preset, by its name."""
    return {path.stem: architecture_of(read_json(path), path.stem) for path in sorted(CONFIGS.glob("*.json"))}


def read_json(path: Path) -> Mapping[str, Any]:
    """The content of a JSON file that holds a mapping.

    Raises:
        ModelError: It is missing, damaged or holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no mapping")
    return content
