"""What one decoder layer takes of a token, counted along the modules' own code (transformers, PEFT, this engine).

Adapters are float32. In a 16-bit model each adapted layer turns its input into float32 and keeps that copy for the
backward pass, and every norm does the same: that is more than half of what a layer keeps. In a float32 model the
copies are the inputs themselves, shared by whoever reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vgpo_lite.planning.architecture import Architecture

FLOAT = 4
"""Bytes of a float32."""


@dataclass(frozen=True, kw_only=True)
class LayerCosts:
    """Bytes of one decoder layer; those of a token unless it says otherwise.

    Attributes:
        input: What enters and leaves it.
        kept: What it keeps for the backward pass, its input included.
        kept_to_keys: The same up to its keys and values.
        keys_values: Its keys and values.
        forward: The most it holds besides, while it runs without keeping anything.
        backward: The most its backward pass holds besides what is kept.
        spared: What of `kept` is gone when the largest weight is dequantized in the backward pass, less what is new.
        workspace: The largest weight in 16 bits (or float32) with its scales: bytes in all.
    """

    input: int
    kept: int
    kept_to_keys: int
    keys_values: int
    forward: int
    backward: int
    spared: int
    workspace: int

    def forward_bytes(self, tokens: int) -> int:
        """The most that a forward pass of the layer holds besides its input, nothing being kept."""
        return max(tokens * self.forward, self.workspace + tokens * (self.forward - 2 * self.backward))

    def backward_bytes(self, tokens: int) -> int:
        """The most that the layer's backward pass holds, what was kept included."""
        return tokens * self.kept + max(tokens * self.backward, self.workspace - tokens * self.spared)


def layer_costs(model: Architecture, *, itemsize: int, rank: int, quantized: bool) -> LayerCosts:
    """Count one layer of a model.

    Args:
        model: The model.
        itemsize: Bytes of a number that is not quantized.
        rank: Of the adapters.
        quantized: Whether weights are dequantized for each use.
    """
    hidden, inner, query, key = model.hidden, model.inner, model.query, model.key
    copies = itemsize < FLOAT  # of inputs, in float32
    lora = FLOAT * rank
    norms = model.layer_norms * FLOAT * hidden
    head_norms = FLOAT * (query + key) if model.norms_heads else 0
    # Float32 inputs of queries, keys, values and of gate, up; shared where the model itself is in float32.
    inputs = FLOAT * hidden * (5 if copies else 2)
    output_input = FLOAT * query if copies else 0  # of the output projection: what attention gathered
    attention = itemsize * (2 * query + 2 * key) + FLOAT * model.heads
    gated = 3 * itemsize * inner + FLOAT * inner  # gate, its activation, up; their product in float32
    kept = norms + head_norms + inputs + output_input + attention + gated + 7 * lora
    # Queries that nobody reads leave no graph.
    to_keys = FLOAT * hidden * (1 + (2 if copies else 1)) + (FLOAT * key if model.norms_heads else 0) + 2 * lora
    widest = max(linear.weights for linear in model.layer_linears)
    return LayerCosts(
        input=itemsize * hidden,
        kept=kept,
        kept_to_keys=to_keys,
        keys_values=2 * itemsize * key,
        # The activation of gate; up, the adapter's share of it twice in float32, and their sum.
        forward=2 * itemsize * inner + 2 * FLOAT * inner + (3 * itemsize + FLOAT * copies) * hidden,
        backward=FLOAT * inner + 2 * FLOAT * hidden,
        spared=FLOAT * inner - 2 * itemsize * inner,
        workspace=widest * itemsize + widest // 16 if quantized else 0,
    )
