"""What the sizes of a vision tower follow from: the numbers in the model's config.json, whichever family wrote it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from vgpo_lite.planning.anyres import CANVAS_SIDE, most_joined_tokens
from vgpo_lite.planning.images import most_tiles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


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
        splits_heads: Whether queries, keys and values have a linear layer each.
        heads_bias: Whether those layers have a bias.
        has_layer_norms: Whether norms have a bias too.
        patch_numbers: Numbers of the pixels of a patch.
        patch_side: Pixels of a patch's side.
        merge: Patches of a token's side.
        positions: Learned positions; 0: none.
        patch_bias: Whether the embedding of patches has a bias.
        block_scales: Numbers of a block beside its linear layers and norms.
        connector: Parameters of what turns the last block's patches into tokens.
        tile: Pixels of a tile's side, where images are cut into tiles of one size; 0: they are not.
        is_one_tile: Whether every image is one tile, whatever its size and the pixel budget.
        joins_tiles: Whether the tiles of a prompt's only image become one map whose rows end with a token of their own,
            and each of several images is one tile and such a token.
        keeps_states: Whether the model holds what goes on between all blocks until the tower is through.
        deepstack: Layers of the language model that get features of their own.
        output: Numbers of an image token.
    """

    depth: int
    width: int
    inner: int
    gated: bool
    splits_heads: bool = False
    heads_bias: bool = True
    has_layer_norms: bool
    patch_numbers: int
    patch_side: int
    merge: int
    positions: int
    patch_bias: bool
    block_scales: int = 0
    connector: int
    tile: int = 0
    is_one_tile: bool = False
    joins_tiles: bool = False
    keeps_states: bool = False
    deepstack: int = 0
    output: int

    @property
    def block_linears(self) -> tuple[Linear, ...]:
        """The linear layers of one block."""
        width, inner = self.width, self.inner
        ins = (Linear(width, inner, True),) * (2 if self.gated else 1)
        bias = self.heads_bias
        heads = (Linear(width, width, bias),) * 3 if self.splits_heads else (Linear(width, 3 * width, bias),)
        return (*heads, Linear(width, width, True), *ins, Linear(inner, width, True))

    @property
    def token_side(self) -> int:
        """Pixels of a token's side."""
        return self.patch_side * self.merge

    @property
    def tile_tokens(self) -> int:
        """Tokens of a tile; 0 where there are none."""
        return (self.tile // self.token_side) ** 2

    def tokens_within(self, pixels: int) -> int:
        """The most tokens of an image under a pixel budget: never fewer than one, or than those of a tile."""
        if self.is_one_tile:
            return self.tile_tokens
        if self.joins_tiles:
            return most_joined_tokens(self.tile_tokens, self._canvas_tiles(pixels))
        return max(pixels // self.token_side**2, self.tile_tokens, 1)

    def patches_of(self, tokens: int, *, pixels: int) -> int:
        """Patches that the tower sees of an image, padding of its tiles included; no image of so many has more.

        Args:
            tokens: Of the image.
            pixels: The pixel budget.
        """
        if not self.joins_tiles:
            return tokens * self.merge**2
        tiles = 1 if tokens <= self.tile_tokens + 1 else 1 + self._canvas_tiles(pixels)
        return tiles * self.tile_tokens

    def _canvas_tiles(self, pixels: int) -> int:
        """The most tiles of a canvas under a pixel budget."""
        return min(most_tiles(self.tile, max_pixels=pixels), CANVAS_SIDE**2)

    @property
    def parameters(self) -> int:
        """All of them."""
        norm = 2 if self.has_layer_norms else 1
        block = 2 * norm * self.width + sum(linear.parameters for linear in self.block_linears) + self.block_scales
        patches = Linear(self.patch_numbers, self.width, self.patch_bias).parameters
        return patches + self.positions * self.width + self.depth * block + self.connector


def _qwen2_vl(config: Mapping[str, Any]) -> Vision:
    vision = config["vision_config"]
    width = vision.get("embed_dim", 1280)
    return Vision(
        width=width,
        inner=int(width * vision.get("mlp_ratio", 4)),
        gated=False,
        has_layer_norms=True,
        positions=0,
        patch_bias=False,
        connector=_merger(width, vision, vision["hidden_size"], norm=2),
        output=vision["hidden_size"],
        **_patches(vision, side=14),
    )


def _qwen2_5_vl(config: Mapping[str, Any]) -> Vision:
    vision = config["vision_config"]
    return Vision(
        width=vision["hidden_size"],
        inner=vision["intermediate_size"],
        gated=True,
        has_layer_norms=False,
        positions=0,
        patch_bias=False,
        connector=_merger(vision["hidden_size"], vision, vision["out_hidden_size"], norm=1),
        output=vision["out_hidden_size"],
        **_patches(vision, side=14),
    )


def _qwen3_vl(config: Mapping[str, Any]) -> Vision:
    vision = config["vision_config"]
    width, output = vision["hidden_size"], vision["out_hidden_size"]
    merger, depth = _merger(width, vision, output, norm=2), len(vision["deepstack_visual_indexes"])
    wider = 2 * width * (vision.get("spatial_merge_size", 2) ** 2 - 1)  # DeepStack's norms are over merged patches
    return Vision(
        width=width,
        inner=vision["intermediate_size"],
        gated=False,
        has_layer_norms=True,
        positions=vision.get("num_position_embeddings", 2304),
        patch_bias=True,
        connector=merger + depth * (merger + wider),
        deepstack=depth,
        output=output,
        **_patches(vision, side=16),
    )


def _merger(width: int, vision: Mapping[str, Any], output: int, *, norm: int) -> int:
    """Parameters of a norm over patches and of two linear layers over those that become one token."""
    merged = width * vision.get("spatial_merge_size", 2) ** 2
    return norm * width + Linear(merged, merged, True).parameters + Linear(merged, output, True).parameters


def _patches(vision: Mapping[str, Any], *, side: int) -> dict[str, Any]:
    """What all towers say in the same words; `side` is the families' default."""
    side = vision.get("patch_size", side)
    frames, channels = vision.get("temporal_patch_size", 2), vision.get("in_channels", 3)
    return {
        "depth": vision.get("depth", 32),
        "patch_numbers": channels * frames * side * side,
        "patch_side": side,
        "merge": vision.get("spatial_merge_size", 2),
    }


def _siglip(vision: Mapping[str, Any], *, merge: int, connector: int, output: int, depth: int) -> Vision:
    """A SigLIP tower over tiles; `connector` is what stands behind its last norm, `depth` the default of its blocks."""
    width, side, tile = vision["hidden_size"], vision["patch_size"], vision["image_size"]
    return Vision(
        depth=vision.get("num_hidden_layers", depth),
        width=width,
        inner=vision.get("intermediate_size", 3072),
        gated=False,
        splits_heads=True,
        has_layer_norms=True,
        patch_numbers=3 * side * side,
        patch_side=side,
        merge=merge,
        positions=(tile // side) ** 2,
        patch_bias=True,
        connector=2 * width + connector,
        tile=tile,
        output=output,
    )


def _smolvlm(config: Mapping[str, Any]) -> Vision:
    vision, merge, output = config["vision_config"], config.get("scale_factor", 2), config["text_config"]["hidden_size"]
    connector = Linear(vision["hidden_size"] * merge**2, output).parameters
    return _siglip(vision, merge=merge, connector=connector, output=output, depth=12)


def _gemma3(config: Mapping[str, Any]) -> Vision:
    vision, output = config["vision_config"], config["text_config"]["hidden_size"]
    tokens_per_side = math.isqrt(config.get("mm_tokens_per_image", 256))
    merge = vision["image_size"] // vision["patch_size"] // tokens_per_side  # pooled
    connector = vision["hidden_size"] * (1 + output)  # a norm and a matrix
    return replace(_siglip(vision, merge=merge, connector=connector, output=output, depth=12), is_one_tile=True)


def _internvl(config: Mapping[str, Any]) -> Vision:
    vision, output = config["vision_config"], config["text_config"]["hidden_size"]
    merge, width = round(1 / config.get("downsample_ratio", 0.5)), vision.get("hidden_size", 1024)
    side, tile = (_side(vision.get(name, default)) for name, default in (("patch_size", 14), ("image_size", 448)))
    merged = width * merge**2
    return Vision(
        depth=vision.get("num_hidden_layers", 24),
        width=width,
        inner=vision.get("intermediate_size", 4096),
        gated=False,
        splits_heads=True,
        heads_bias=vision.get("attention_bias", False),
        has_layer_norms=vision.get("norm_type", "layer_norm") == "layer_norm",
        patch_numbers=3 * side * side,
        patch_side=side,
        merge=merge,
        positions=(tile // side) ** 2 + 2,  # the class token's embedding and position are two more
        patch_bias=True,
        block_scales=2 * width,
        connector=2 * merged + Linear(merged, output, True).parameters + Linear(output, output, True).parameters,
        tile=tile,
        output=output,
    )


def _llava_onevision(config: Mapping[str, Any]) -> Vision:
    vision, output = config["vision_config"], config["text_config"]["hidden_size"]
    bias = config.get("multimodal_projector_bias", True)
    projector = Linear(vision["hidden_size"], output, bias).parameters + Linear(output, output, bias).parameters
    # What ends a row of tokens is learned too: one token's numbers.
    tower = _siglip(vision, merge=1, connector=projector + output, output=output, depth=12)
    return replace(tower, joins_tiles=True, keeps_states=True)


def _side(size: int | Sequence[int]) -> int:
    """The side of a square that a configuration gives once or twice."""
    return size if isinstance(size, int) else size[0]


TOWERS = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "smolvlm": _smolvlm,
    "internvl": _internvl,
    "llava_onevision": _llava_onevision,
    "gemma3": _gemma3,
}
"""The tower in a config.json, by its `model_type`."""
