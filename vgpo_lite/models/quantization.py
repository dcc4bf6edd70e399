"""NF4 for the language model's linear layers and for nothing else, checked on the loaded modules themselves.

Four bits make a vision tower blind, and a quantized head or merger spoils what surrounds it. What a list of names to
skip really did is only known afterwards: so the types of the modules decide.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt, Params4bit
from safetensors import safe_open
from torch import nn
from transformers import BitsAndBytesConfig

from vgpo_lite.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from jaxtyping import Float
    from torch import Tensor

    from vgpo_lite.models.families import Family

_SCALES = ".weight.quant_state.bitsandbytes__nf4"
_SHOWN = 3  # module names in a message


def nf4_settings(family: Family, dtype: torch.dtype) -> BitsAndBytesConfig:
    """How a 16-bit checkpoint is quantized while it loads: NormalFloat4, its scales quantized again (QLoRA, Sec. 3).

    Args:
        family: Names what stays as it is.
        dtype: The format products are computed in.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=family.skip_quantization(),
    )


def stored_quantization(config: Mapping[str, Any], model_id: str) -> Literal["nf4"] | None:
    """How the checkpoint with this config.json is quantized on the disk.

    Raises:
        ModelError: In another way than bitsandbytes' NF4, which cannot be trained here.
    """
    stored = config.get("quantization_config")
    if not stored:
        return None
    if not isinstance(stored, dict):
        raise ModelError(
            f"{model_id}: its quantization_config is {stored!r}, expected a table. Fetch or copy it again."
        )
    method = stored.get("quant_method", "bitsandbytes" if "load_in_4bit" in stored else "an unnamed method")
    form = stored.get("bnb_4bit_quant_type", "fp4") if stored.get("load_in_4bit") else "int8"
    if method != "bitsandbytes" or form != "nf4":
        found = f"{method} {form}" if method == "bitsandbytes" else method
        raise ModelError(
            f"{model_id} is quantized with {found}; expected 16-bit weights or bitsandbytes NF4. Choose the repository "
            "it was made from: it is quantized while it loads."
        )
    return "nf4"


def widen(model: nn.Module, dtype: torch.dtype) -> None:
    """Put what a quantized checkpoint stored in another format into `dtype`.

    Weights that are not quantized load as they were stored. Those that are remember the format they were in: forward
    passes ignore it, backward passes round to it.
    """
    for parameter in model.parameters():
        if isinstance(parameter, Params4bit):
            state: QuantState | None = parameter.quant_state
            if state is not None:
                state.dtype = dtype
        elif parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def stored_in_16_bits(folder: Path, family: Family) -> list[str]:
    """Names of the layers that a quantized checkpoint kept as they were, as far as releases of transformers agree.

    The checkpoint's own list of them is no guide: what its entries match has changed between releases, and so have the
    names of modules. Its tensors tell: a 4-bit weight comes with its scales. Names start at the tower, at what connects
    it, or at the decoder's `layers`.
    """
    parts = "|".join(re.escape(name.removeprefix("model.")) for name in family.skip_quantization())
    names: set[str] = set()
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            names.update(file.keys())
    in_4bit = {name.removesuffix(_SCALES) for name in names if name.endswith(_SCALES)}
    plain = {"lm_head"} | {name.removesuffix(".weight") for name in names if name.endswith(".weight")}  # tied: unstored
    # Once: where a name begins with the tower's, nothing is in front of it, and `sub` would go on to the second way.
    lead = re.compile(rf"^.*?(?=({parts})\.)|^.*?(?=layers\.)")
    return sorted(lead.sub("", name, count=1) for name in plain - in_4bit)


def check_precision(model: nn.Module, family: Family, dtype: torch.dtype, *, quantized: bool, stored: bool) -> None:
    """Look at every module of a loaded model: 4-bit where it should be, 16-bit (or `dtype`) everywhere else.

    Args:
        model: The bare model.
        family: Where its parts are.
        dtype: The format of everything that is not quantized.
        quantized: Whether the language model's linear layers should be in NF4.
        stored: Whether the checkpoint came quantized; some of its layers may then be left in 16 bits.

    Raises:
        ModelError: A module is of another type than it should be; the message names some.
    """
    inside = {module for layer in family.layers(model) for module in layer.modules()}
    wrong: dict[str, list[str]] = {}
    in_4bit = 0
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit) and quantized and module in inside:
            in_4bit += 1
            problem = _problem_with_4bit(module, stored=stored)
        elif isinstance(module, (Linear4bit, Linear8bitLt)):
            problem = "quantized, but should not be"
        elif isinstance(module, nn.Linear) and module in inside and quantized and not stored:
            problem = "not quantized, but should be"
        elif isinstance(module, (nn.Linear, nn.Embedding, nn.Conv3d)) and module.weight.dtype != dtype:
            problem = f"in {module.weight.dtype}, not in {dtype}"
        else:
            problem = None
        if problem is not None:
            wrong.setdefault(problem, []).append(name)
    if quantized and not in_4bit:
        raise ModelError("the model was to be loaded in NF4, but none of its language model's layers is")
    if wrong:
        told = "; ".join(
            f"{', '.join(names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''} ({len(names)}): {problem}"
            for problem, names in wrong.items()
        )
        raise ModelError(
            f"the model did not load as it should: {told}. Only the linear layers of the language model may be in NF4, "
            "or the model goes blind; choose another checkpoint, or quantization=none."
        )


def _problem_with_4bit(module: Linear4bit, *, stored: bool) -> str | None:
    state = quant_state(module)
    if state is None:
        return "of a 4-bit type, but its weights are not quantized"
    if state.quant_type != "nf4":
        return f"in {state.quant_type}, not in nf4"
    if not state.nested and not stored:
        return "without double quantization"
    return None


def quant_state(module: Linear4bit) -> QuantState | None:
    """The scales of a 4-bit layer; None where its weights were never quantized."""
    weight = module.weight
    return weight.quant_state if isinstance(weight, Params4bit) else None


def plain_weight(module: nn.Module) -> Float[Tensor, "out in"]:
    """The weight that a linear layer multiplies with: its own, or what its 4 bits stand for.

    Raises:
        ModelError: The module is no linear layer.
    """
    if not isinstance(module, nn.Linear):
        raise ModelError(f"{type(module).__name__} is not a linear layer")
    if not isinstance(module, Linear4bit):
        return module.weight.data
    return dequantize_4bit(module.weight.data, quant_state(module))


def weight_sizes(model: nn.Module) -> Iterator[tuple[int, int]]:
    """For each parameter: how many weights it stands for, and the bytes it takes with its scales."""
    for parameter in model.parameters():
        state = parameter.quant_state if isinstance(parameter, Params4bit) else None
        if state is None:
            yield parameter.numel(), parameter.nbytes
        else:
            scales = [value for value in state.as_dict(packed=False).values() if isinstance(value, torch.Tensor)]
            yield (
                parameter.numel() * 2 * parameter.element_size(),
                parameter.nbytes + sum(scale.nbytes for scale in scales),
            )
