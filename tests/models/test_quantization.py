"""Four bits for the language model's linear layers and for nothing else, by the types of the loaded modules."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig

from tests.hub.gemma import GEMMA3
from tests.hub.models import QWEN2_5_VL, QWEN2_VL, QWEN3_VL, QWENS, SMALLEST_OF_EACH_FAMILY, UNTIED, write_model
from tests.hub.tiled import INTERNVL3, SMOLVLM2, TILED
from vgpo_lite.config.schema import RunConfig
from vgpo_lite.errors import ModelError
from vgpo_lite.models import load_policy
from vgpo_lite.models.families import family_of
from vgpo_lite.models.quantization import check_precision, plain_weight, quant_state

if TYPE_CHECKING:
    from pathlib import Path

    from vgpo_lite.models.policy import Policy

UNTIED_TILES = (SMOLVLM2, INTERNVL3)
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def _bare(policy: Policy) -> Any:
    return policy.family.bare(policy.model)


def _linears(policy: Policy) -> dict[str, nn.Linear]:
    """Linear layers of the model itself, those of adapters left out, by their names without PEFT's."""
    return {
        name.removesuffix(".base_layer"): module
        for name, module in _bare(policy).named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, dtype) for name in (*QWENS, *UNTIED) for dtype in ("auto", "bfloat16", "float16")),
        *((name, "auto") for name in (*TILED, GEMMA3)),
    ],
)
def test_only_the_language_models_projections_are_in_4_bits(
    published, name: str, dtype: Literal["auto", "bfloat16", "float16"]
) -> None:
    policy = load_policy(RunConfig(model=name, dtype=dtype))
    wide = {"auto": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    linears = _linears(policy)
    in_4bit = {layer for layer, module in linears.items() if type(module) is Linear4bit}
    expected = {layer for layer in linears if f".{policy.family.decoder}.layers." in layer}
    assert in_4bit == expected
    assert {layer.rpartition(".")[2] for layer in in_4bit} == PROJECTIONS
    for module in linears.values():
        if isinstance(module, Linear4bit):
            state = quant_state(module)
            assert state is not None
            assert (state.quant_type, state.nested, module.weight.dtype) == ("nf4", True, torch.uint8)
            assert module.compute_dtype == wide
        else:
            assert type(module) is nn.Linear
            assert module.weight.dtype == wide
    head, embeddings = _bare(policy).get_output_embeddings(), _bare(policy).get_input_embeddings()
    assert (head.weight is embeddings.weight) == (name not in (*UNTIED, *UNTIED_TILES))
    assert isinstance(embeddings, nn.Embedding)
    assert embeddings.weight.dtype == wide
    family = policy.family
    tower = [layer for layer in linears if f".{family.tower}." in layer]
    assert any(family.blocks in layer for layer in tower)
    wide = [layer for layer in linears if layer != "lm_head" and f".{family.decoder}." not in layer]
    connects = any("merger" in layer or any(part in layer for part in family.connectors) for layer in wide)
    assert connects == (name != GEMMA3)  # whose connector multiplies with a parameter of its own


@pytest.mark.parametrize("name", SMALLEST_OF_EACH_FAMILY)
def test_without_quantization_the_weights_are_those_of_the_checkpoint(published, name: str) -> None:
    policy = load_policy(RunConfig(model=name, quantization="none"))
    assert policy.quantization == "none"
    original = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32).state_dict()
    assert {type(module) for module in _linears(policy).values()} == {nn.Linear}
    for layer, module in _linears(policy).items():
        torch.testing.assert_close(module.weight.data, original[f"{layer}.weight"], rtol=0, atol=0)


def test_4_bits_stand_for_what_bitsandbytes_makes_of_the_checkpoint(published) -> None:
    policy = load_policy(RunConfig(model=QWEN2_VL))
    original = AutoModelForImageTextToText.from_pretrained(QWEN2_VL, dtype=torch.float32).state_dict()
    for layer, module in _linears(policy).items():
        weight = original[f"{layer}.weight"]
        if type(module) is Linear4bit:
            codes, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
            weight = dequantize_4bit(codes, state)
        torch.testing.assert_close(plain_weight(module).data, weight, rtol=0, atol=0)


@pytest.fixture
def stored_in_nf4(published, tmp_path: Path):
    """A checkpoint that was quantized and saved: by name, and what was left in 16 bits."""

    def store(name: str, skipped: list[str]) -> Path:
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=skipped,
        )
        model = AutoModelForImageTextToText.from_pretrained(
            published[name], quantization_config=settings, dtype=torch.bfloat16, device_map={"": "cpu"}
        )
        folder = write_model(tmp_path / "stored", name)
        for shard in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
            shard.unlink()
        model.save_pretrained(folder)
        return folder

    return store


@pytest.mark.parametrize("name", [QWEN2_VL, QWEN2_5_VL, QWEN3_VL, UNTIED[0]])
def test_a_checkpoint_stored_in_nf4_loads_as_it_is_and_computes_in_the_format_asked_for(
    stored_in_nf4, name: str
) -> None:
    folder = stored_in_nf4(name, ["model.visual", "lm_head"])
    policy = load_policy(RunConfig(model=str(folder)))
    fresh = load_policy(RunConfig(model=name))
    assert policy.quantization == "nf4"
    for layer, module in _linears(policy).items():
        if type(module) is Linear4bit:
            assert module.compute_dtype == torch.float32
            torch.testing.assert_close(plain_weight(module), plain_weight(_linears(fresh)[layer]), rtol=0, atol=0)
    assert sum(type(module) is Linear4bit for module in _linears(policy).values()) == 21


def test_a_checkpoint_stored_with_some_layers_in_16_bits_loads_as_it_is(stored_in_nf4) -> None:
    folder = stored_in_nf4(QWEN2_VL, ["model.visual", "lm_head", "model.language_model.layers.0.mlp"])
    policy = load_policy(RunConfig(model=str(folder)))
    assert sum(type(module) is Linear4bit for module in _linears(policy).values()) == 18


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        *((name, listed) for name in QWENS for listed in (["visual", "lm_head"], ["lm_head"], None)),
        *((name, ["lm_head"]) for name in (*TILED, GEMMA3)),
    ],
)
def test_a_checkpoint_whose_list_of_wide_layers_means_nothing_today_loads_by_its_tensors(
    published, stored_in_nf4, name: str, listed: list[str] | None
) -> None:
    family = family_of(AutoConfig.from_pretrained(published[name]))
    folder = stored_in_nf4(name, [*family.skip_quantization(), f"model.{family.decoder}.layers.1.self_attn"])
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["llm_int8_skip_modules"] = listed
    path.write_text(json.dumps(config))
    policy = load_policy(RunConfig(model=str(folder)))
    assert sum(type(module) is Linear4bit for module in _linears(policy).values()) == 21 - 4


def test_a_checkpoint_stored_with_a_blind_tower_is_refused(stored_in_nf4) -> None:
    folder = stored_in_nf4(QWEN2_VL, ["lm_head"])
    with pytest.raises(ModelError, match=r"model\.visual\.blocks\.0.*quantized, but should not be"):
        load_policy(RunConfig(model=str(folder)))


def test_a_checkpoint_stored_in_nf4_is_not_trained_as_if_it_were_in_16_bits(stored_in_nf4) -> None:
    folder = stored_in_nf4(QWEN2_VL, ["model.visual", "lm_head"])
    with pytest.raises(ModelError, match="stored in NF4, but quantization is none"):
        load_policy(RunConfig(model=str(folder), quantization="none"))


@pytest.mark.parametrize(
    ("skipped", "told"),
    [
        (["visual", "lm_head"], r"model\.visual\..*quantized, but should not be"),
        (["model.visual"], r"lm_head \(1\): quantized, but should not be"),
        (["model.visual", "lm_head", "model.language_model.layers.1"], r"layers\.1\..*not quantized, but should be"),
        (["model"], "none of its language model's layers is"),
    ],
)
def test_lists_of_names_that_miss_their_aim_are_found_by_module_type(published, skipped: list[str], told: str) -> None:
    name = UNTIED[0]
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=skipped,
    )
    model = AutoModelForImageTextToText.from_pretrained(
        name, quantization_config=settings, dtype=torch.float32, device_map={"": "cpu"}
    )
    with pytest.raises(ModelError, match=told):
        check_precision(model, family_of(model.config), torch.float32, quantized=True, stored=False)


def _changed(name: str, change: str) -> Any:
    model = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32)
    layer = model.model.language_model.layers[0].mlp
    layer.down_proj = Linear4bit(128, 64, bias=False, quant_type="nf4", compress_statistics=True).to("cpu")
    if change == "int8":
        layer.up_proj = Linear8bitLt(64, 128, bias=False)
    elif change == "unquantized":
        layer.up_proj = Linear4bit(64, 128, bias=False, quant_type="nf4")
    elif change in ("fp4", "single"):
        layer.up_proj = Linear4bit(
            64, 128, bias=False, quant_type="fp4" if change == "fp4" else "nf4", compress_statistics=change == "fp4"
        ).to("cpu")
    else:
        model.lm_head.to(torch.bfloat16)
    return model


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("int8", "quantized, but should not be"),
        ("unquantized", "its weights are not quantized"),
        ("fp4", "in fp4, not in nf4"),
        ("single", "without double quantization"),
        ("narrow", r"in torch\.bfloat16, not in torch\.float32"),
    ],
)
def test_a_single_layer_of_another_kind_is_named(published, change: str, told: str) -> None:
    model = _changed(UNTIED[0], change)
    with pytest.raises(ModelError, match=told):
        check_precision(model, family_of(model.config), torch.float32, quantized=True, stored=False)


def test_parameters_and_bytes_count_four_bits_as_weights_and_their_scales_as_memory(published) -> None:
    policy = load_policy(RunConfig(model=QWEN2_VL))
    config = AutoConfig.from_pretrained(published[QWEN2_VL])
    with torch.device("meta"):
        bare = AutoModelForImageTextToText.from_config(config)
    whole = sum(parameter.numel() for parameter in bare.parameters())
    adapters = sum(parameter.numel() for parameter in policy.adapters().values())
    assert policy.parameter_count() == whole + adapters
    in_4bit = 3 * (64 * 64 * 2 + 2 * 32 * 64 + 3 * 64 * 128)  # q, o; k, v with half the heads; gate, up, down; 3 layers
    blocks = in_4bit // 64
    others = 4 * (whole - in_4bit + adapters)
    # half a byte per weight and one byte per block of 64; per matrix: the second scales' own and the two tables
    scales = policy.weight_bytes() - others - in_4bit // 2 - blocks
    assert 0 < scales < 21 * (4 * (256 + 16) + 64)
