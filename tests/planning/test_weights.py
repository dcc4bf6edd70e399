"""What is held all the time: parameters, NF4 and adapters to the byte, optimizer states."""

from __future__ import annotations

import pytest

from vgpo_lite.config.load import load_config
from vgpo_lite.models import load_policy
from vgpo_lite.models.hub import TINY_FOLDER
from vgpo_lite.planning import architecture_of, preset_architectures, read_json
from vgpo_lite.planning.weights import adapted_linears, adapter_matrices, nf4_bytes, state_bytes, weight_bytes


@pytest.mark.parametrize(
    ("preset", "billions"),
    [
        ("qwen2-vl-2b", 2.21),
        ("qwen2-vl-7b", 8.29),
        ("qwen2.5-vl-3b", 3.75),
        ("qwen2.5-vl-7b", 8.29),
        ("qwen3-vl-2b", 2.13),
        ("qwen3-vl-4b", 4.44),
        ("qwen3-vl-8b", 8.77),
        ("gemma3-4b", 4.30),
        ("gemma3-12b", 12.19),
        ("internvl3-1b", 0.94),
        ("internvl3-2b", 2.09),
        ("internvl3-8b", 7.94),
        ("llava-onevision-0.5b", 0.89),
        ("llava-onevision-7b", 8.03),
        ("smolvlm2-256m", 0.26),
        ("smolvlm2-500m", 0.51),
        ("smolvlm2-2.2b", 2.25),
    ],
)
def test_the_shipped_configs_have_as_many_parameters_as_the_hub_says(preset, billions):
    assert round(preset_architectures()[preset].parameters / 1e9, 2) == billions


def test_a_matrix_in_nf4_by_hand():
    # 100 x 1000 weights: 50,000 bytes; 1,563 scales of a byte; 7 scales of scales; 16 + 256 values of two tables.
    assert nf4_bytes(100_000) == 50_000 + 1_563 + 7 * 4 + (16 + 256) * 4


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_loaded_models_weights_and_adapters_to_the_byte(quantization):
    policy = load_policy(load_config(overrides=[f"quantization={quantization}"]))
    model = architecture_of(read_json(TINY_FOLDER / "config.json"), "tiny")
    matrices = adapter_matrices(adapted_linears(model, vision=False), rank=16)
    assert sum(matrices) == sum(parameter.numel() for parameter in policy.adapters().values())
    weights = weight_bytes(model, quantized=quantization == "nf4", itemsize=4)
    assert weights + 4 * sum(matrices) == policy.weight_bytes()


@pytest.mark.parametrize(
    "preset",
    [
        "qwen2-vl-2b",
        "qwen2.5-vl-7b",
        "qwen3-vl-4b",
        "smolvlm2-2.2b",
        "internvl3-1b",
        "llava-onevision-0.5b",
        "llava-onevision-7b",
        "gemma3-4b",
    ],
)
def test_a_presets_parameters_are_those_of_the_model_that_transformers_builds(preset):
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from vgpo_lite.models.families import family_of
    from vgpo_lite.planning.architecture import CONFIGS

    written = dict(read_json(CONFIGS / f"{preset}.json"))
    config = AutoConfig.for_model(**written)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    found = sum(parameter.numel() for parameter in model.parameters())
    planned = preset_architectures()[preset]
    assert found == planned.parameters
    family = family_of(config)
    layer = family.layers(model)[0]
    assert sum(parameter.numel() for parameter in layer.parameters()) == planned.layer_parameters
    linears = [module for module in family.vision_layers(model)[0].modules() if isinstance(module, torch.nn.Linear)]
    assert sorted((linear.in_features, linear.out_features) for linear in linears) == sorted(
        (linear.inputs, linear.outputs) for linear in planned.vision.block_linears
    )


def test_optimizer_states_by_hand():
    # 8 bits: two states of 8,192 bytes with 32 scales each; 100 numbers are too few and stay in float32.
    assert state_bytes([8192, 100], in_8_bits=True) == 2 * (8192 + 32 * 4) + 2 * 100 * 4
    assert state_bytes([8192, 100], in_8_bits=False) == 2 * 4 * 8292
