"""What the sizes of a model follow from: the numbers in its config.json, whichever family wrote it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vgpo_lite.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIGS = Path(__file__).parent / "configs"
"""config.json of each preset, written down from memory of the models; their parameter counts are those of the hub."""


class Linear(NamedTuple):
    """A linear layer.

    Attributes:
        inputs: Its columns.
        outputs: Its rows.
        bias: Whether it adds one number per row.
    """

    inputs: int
    outputs: int
    bias: bool = False

    @property
    def weights(self) -> int:
        """Numbers of the matrix."""
        return self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        """Numbers of the matrix and the bias."""
        return self.weights + self.bias * self.outputs


@dataclass(frozen=True, kw_only=True)
class Vision:
    """The vision tower.

    Attributes:
        depth: Blocks.
        width: Numbers of a patch between blocks.
        inner: Numbers of a patch inside a block's MLP.
        gated: Whether the MLP has a gate (three linear layers instead of two).
        has_layer_norms: Whether norms have a bias too.
        patch_numbers: Numbers of the pixels of a patch.
        patch_side: Pixels of a patch's side.
        merge: Patches of a token's side.
        positions: Learned positions; 0: none.
        patch_bias: Whether the embedding of patches has a bias.
        deepstack: Layers of the language model that get features of their own.
        output: Numbers of an image token.
    """

    depth: int
    width: int
    inner: int
    gated: bool
    has_layer_norms: bool
    patch_numbers: int
    patch_side: int
    merge: int
    positions: int
    patch_bias: bool
    deepstack: int
    output: int

    @property
    def block_linears(self) -> tuple[Linear, ...]:
        """The linear layers of one block."""
        width, inner = self.width, self.inner
        ins = (Linear(width, inner, True),) * (2 if self.gated else 1)
        return (Linear(width, 3 * width, True), Linear(width, width, True), *ins, Linear(inner, width, True))

    @property
    def merged(self) -> int:
        """Numbers of the patches that become one token."""
        return self.width * self.merge**2

    @property
    def parameters(self) -> int:
        """All of them."""
        norm = 2 if self.has_layer_norms else 1
        block = 2 * norm * self.width + sum(linear.parameters for linear in self.block_linears)
        patches = Linear(self.patch_numbers, self.width, self.patch_bias).parameters
        merger = Linear(self.merged, self.merged, True).parameters + Linear(self.merged, self.output, True).parameters
        mergers = (1 + self.deepstack) * merger + norm * (self.width + self.deepstack * self.merged)
        return patches + self.positions * self.width + self.depth * block + mergers


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
        norms = 2 * self.hidden + self.norms_heads * 2 * self.head_size
        return norms + sum(linear.parameters for linear in self.layer_linears)

    @property
    def parameters(self) -> int:
        """Of the whole model; a tied head counts once."""
        tables = self.vocabulary * self.hidden * (1 if self.ties_head else 2)
        return tables + self.layers * self.layer_parameters + self.hidden + self.vision.parameters


def architecture_of(config: Mapping[str, Any], name: str) -> Architecture:
    """Read a model's config.json, in the older flat form or with the text's part apart.

    Args:
        config: Its content.
        name: How messages call the model.

    Raises:
        ModelError: It lacks a number, or is of another architecture.
    """
    kind = config.get("model_type")
    if kind not in _VISION:
        raise ModelError(f"{name}: models of type {kind!r} are not planned for; expected one of {', '.join(_VISION)}")
    text = {**config, **config.get("text_config", {})}
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
            ties_head=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
            projection_bias=bool(text.get("attention_bias", kind != "qwen3_vl")),
            norms_heads=kind == "qwen3_vl",
            vision=_VISION[kind](config["vision_config"]),
        )
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"{name}: its config.json cannot be planned with: {error!r} is missing or no number"
        ) from error


def _qwen2_vl(vision: Mapping[str, Any]) -> Vision:
    width = vision.get("embed_dim", 1280)
    return Vision(
        width=width,
        inner=int(width * vision.get("mlp_ratio", 4)),
        gated=False,
        has_layer_norms=True,
        positions=0,
        patch_bias=False,
        deepstack=0,
        output=vision["hidden_size"],
        **_patches(vision, side=14),
    )


def _qwen2_5_vl(vision: Mapping[str, Any]) -> Vision:
    return Vision(
        width=vision["hidden_size"],
        inner=vision["intermediate_size"],
        gated=True,
        has_layer_norms=False,
        positions=0,
        patch_bias=False,
        deepstack=0,
        output=vision["out_hidden_size"],
        **_patches(vision, side=14),
    )


def _qwen3_vl(vision: Mapping[str, Any]) -> Vision:
    return Vision(
        width=vision["hidden_size"],
        inner=vision["intermediate_size"],
        gated=False,
        has_layer_norms=True,
        positions=vision.get("num_position_embeddings", 2304),
        patch_bias=True,
        deepstack=len(vision["deepstack_visual_indexes"]),
        output=vision["out_hidden_size"],
        **_patches(vision, side=16),
    )


def _patches(vision: Mapping[str, Any], *, side: int) -> dict[str, int]:
    """What all towers say in the same words; `side` is the families' default."""
    side = vision.get("patch_size", side)
    frames, channels = vision.get("temporal_patch_size", 2), vision.get("in_channels", 3)
    return {
        "depth": vision.get("depth", 32),
        "patch_numbers": channels * frames * side * side,
        "patch_side": side,
        "merge": vision.get("spatial_merge_size", 2),
    }


_VISION = {"qwen2_vl": _qwen2_vl, "qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl}


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
