"""RunConfig -> Policy: what is known of the model, what is not inherited from it, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, GenerationConfig

from tests.hub import gemma, tiled
from tests.hub.models import QWEN2_5_VL, QWEN2_VL, QWEN3_VL, QWENS, SMALLEST_OF_EACH_FAMILY, token_id
from vgpo_lite.config.schema import LoraSettings, RunConfig
from vgpo_lite.errors import HardwareError, ModelError
from vgpo_lite.models import load_policy, loading
from vgpo_lite.models.backends import backend_named
from vgpo_lite.models.backends.base import LoadRequest
from vgpo_lite.models.families import family_of
from vgpo_lite.models.hub import model_files
from vgpo_lite.models.loading import chosen_device, chosen_dtype, end_ids, model_settings

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hub.server import HubServer


VISION = [token_id(f"<|{name}|>") for name in ("vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")]


@pytest.mark.parametrize("name", QWENS)
def test_a_policy_knows_its_ends_its_padding_and_what_it_must_not_sample(hub: HubServer, published, name: str) -> None:
    policy = load_policy(RunConfig(model=name))
    assert policy.eos_ids == (token_id("<|endoftext|>"), token_id("<|im_end|>"))
    assert policy.pad_id == token_id("<|endoftext|>")
    assert policy.suppressed_ids == tuple(sorted(VISION))
    assert policy.model_id == name
    assert policy.revision == hub.repositories["models", name].snapshots["main"].commit
    assert (policy.device.type, policy.dtype, policy.family.model_type) == (
        "cpu",
        torch.float32,
        {QWEN2_VL: "qwen2_vl", QWEN2_5_VL: "qwen2_5_vl", QWEN3_VL: "qwen3_vl"}[name],
    )


@pytest.mark.parametrize("name", tiled.TILED)
def test_a_policy_that_reads_tiles_never_samples_what_stands_for_them(published, name: str) -> None:
    policy = load_policy(RunConfig(model=name))
    end, padding = (tiled.token_id(token, name) for token in tiled.ENDS[name])
    assert policy.eos_ids == (end,)
    assert policy.pad_id == padding
    words = {token for token in tiled.TOKENS[name] if token not in tiled.WORDS}
    assert policy.suppressed_ids == tuple(sorted(tiled.token_id(token, name) for token in words))
    assert policy.family.model_type == tiled.MODEL_TYPES[name]


def test_gemma_ends_its_turn_and_never_samples_what_stands_for_images(published) -> None:
    policy = load_policy(RunConfig(model=gemma.GEMMA3))
    ids = policy.processor.tokenizer.convert_tokens_to_ids
    assert policy.eos_ids == tuple(sorted(ids(["<eos>", "<end_of_turn>"])))
    assert policy.pad_id == ids("<pad>") == 0
    assert policy.suppressed_ids == tuple(sorted(ids(["<start_of_image>", "<end_of_image>", "<image_soft_token>"])))
    assert policy.family.windows(policy.model) == (gemma.WINDOW, None, gemma.WINDOW)


@pytest.mark.parametrize("dtype", ["float16", "auto"])
def test_gemma_is_refused_in_float16_before_its_weights_are_fetched(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published, dtype: Any
) -> None:
    name = f"stand-in/gemma-{dtype}"
    hub.publish("models", name, published[gemma.GEMMA3])
    monkeypatch.setattr(loading, "chosen_dtype", lambda *_: torch.float16)  # as on a card without bfloat16
    hub.downloads.clear()
    with pytest.raises(HardwareError, match=r"float16 cannot hold.*set dtype=float32"):
        load_policy(RunConfig(model=name, dtype=dtype))
    assert any("config.json" in path for path in hub.downloads)
    assert not any(path.endswith(".safetensors") for path in hub.downloads)


@pytest.mark.parametrize("name", SMALLEST_OF_EACH_FAMILY)
def test_nothing_of_the_shipped_nearly_greedy_sampling_is_inherited(published, name: str) -> None:
    shipped = GenerationConfig.from_pretrained(published[name])
    assert shipped.do_sample is True
    assert (shipped.temperature, shipped.repetition_penalty, shipped.top_k) != (1.0, 1.0, 50)
    policy = load_policy(RunConfig(model=name))
    left: Any = policy.family.bare(policy.model)
    kept = left.generation_config.to_diff_dict()
    assert set(kept) <= {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config"}


def test_every_end_counts_wherever_it_is_named() -> None:
    class Tokenizer:
        eos_token_id: int | None = 5

    assert end_ids(GenerationConfig(eos_token_id=[9, 7]), Tokenizer()) == (5, 7, 9)
    assert end_ids(GenerationConfig(eos_token_id=5), Tokenizer()) == (5,)
    assert end_ids(None, Tokenizer()) == (5,)
    Tokenizer.eos_token_id = None
    with pytest.raises(ModelError, match="names an end of sequence"):
        end_ids(None, Tokenizer())


def test_text_leaves_out_special_tokens_and_keeps_spaces_as_they_are(published) -> None:
    policy = load_policy(RunConfig(model=QWEN3_VL))
    text = "I see 3 , so \\boxed{3} !"
    ids = policy.processor.tokenizer(f"{text}<|im_end|>", return_tensors="pt")["input_ids"][0]
    assert policy.text_of(ids) == text


@pytest.mark.parametrize("name", SMALLEST_OF_EACH_FAMILY)
def test_only_adapters_learn_and_only_the_language_model_is_recomputed(published, name: str) -> None:
    policy = load_policy(RunConfig(model=name))
    assert {parameter.dtype for parameter in policy.adapters().values()} == {torch.float32}
    assert all(".lora_" in adapter for adapter in policy.adapters())
    assert all(f".{policy.family.tower}." not in adapter for adapter in policy.adapters())
    assert policy.family.language_model(policy.model).is_gradient_checkpointing
    assert not policy.family.vision_tower(policy.model).is_gradient_checkpointing
    assert not policy.family.trains_vision(policy.model)
    plain = load_policy(RunConfig(model=name, gradient_checkpointing=False))
    assert not policy.family.language_model(plain.model).is_gradient_checkpointing


@pytest.mark.parametrize("name", SMALLEST_OF_EACH_FAMILY)
def test_with_vision_adapters_the_blocks_of_the_tower_learn_too(published, name: str) -> None:
    policy = load_policy(RunConfig(model=name, lora=LoraSettings(vision=True)))
    tower = {adapter for adapter in policy.adapters() if f".{policy.family.tower}." in adapter}
    blocks = 3 if name == QWEN3_VL else 2
    per_block = {QWEN2_VL: 4, QWEN2_5_VL: 5, QWEN3_VL: 4}.get(name, 6)
    assert len(tower) == 2 * blocks * per_block
    assert policy.family.trains_vision(policy.model)


def test_dropout_in_a_checkpoint_is_switched_off(published, tmp_path: Path) -> None:
    shutil.copytree(published[QWEN3_VL], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.3
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    policy = load_policy(RunConfig(model=str(tmp_path / "model"), quantization="none"))
    bare: Any = policy.family.bare(policy.model)
    assert bare.model.language_model.layers[0].self_attn.attention_dropout == 0.0


def test_the_reference_is_the_model_without_its_adapters(published) -> None:
    policy = load_policy(RunConfig(model=QWEN2_VL))
    with torch.no_grad():
        for name, parameter in policy.adapters().items():
            if ".lora_B." in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    plain = load_policy(RunConfig(model=QWEN2_VL))
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        adapted = policy.model(input_ids=ids).logits
        with policy.reference():
            reference = policy.model(input_ids=ids).logits
        base = plain.model(input_ids=ids).logits
        again = policy.model(input_ids=ids).logits
    torch.testing.assert_close(reference, base, rtol=0, atol=0)
    torch.testing.assert_close(again, adapted, rtol=0, atol=0)
    assert (adapted - base).abs().max() > 0.1
    assert all(parameter.requires_grad for parameter in policy.adapters().values())


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_weight_that_is_not_in_the_files_is_never_made_up(published, tmp_path: Path, quantization: Any) -> None:
    shutil.copytree(published[QWEN2_VL], tmp_path / "model")
    shard = tmp_path / "model" / "model-00002-of-00003.safetensors"
    tensors = load_file(shard)
    gone = next(name for name in tensors if name.endswith("up_proj.weight"))
    tensors.pop(gone)
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing .*up_proj\.weight"):
        load_policy(RunConfig(model=str(tmp_path / "model"), quantization=quantization))


def test_damaged_weights_are_named(published, tmp_path: Path) -> None:
    shutil.copytree(published[QWEN2_VL], tmp_path / "model")
    shard = tmp_path / "model" / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"the weights in .* cannot be read"):
        load_policy(RunConfig(model=str(tmp_path / "model")))


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("tokenizer.json", r"tokenizer\.json is missing or another model's"),
        ("chat_template.json", "has no chat template"),
        ("preprocessor_config.json", "its processor cannot be loaded"),
    ],
)
def test_a_model_without_its_processor_is_refused(published, tmp_path: Path, file: str, told: str) -> None:
    shutil.copytree(published[QWEN2_VL], tmp_path / "model")
    (tmp_path / "model" / file).unlink()
    with pytest.raises(ModelError, match=told):
        load_policy(RunConfig(model=str(tmp_path / "model")))


def test_a_configuration_that_makes_no_sense_is_a_model_error(published, tmp_path: Path) -> None:
    shutil.copytree(published[QWEN3_VL], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["text_config"]["hidden_size"] = "sixty-four"
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"config\.json cannot be used"):
        load_policy(RunConfig(model=str(tmp_path / "model")))


def test_what_this_machine_lacks_is_a_hardware_error(monkeypatch: pytest.MonkeyPatch, published) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(HardwareError, match="no CUDA card"):
        chosen_device("cuda")
    assert chosen_device("auto") == torch.device("cpu")
    with pytest.raises(HardwareError, match="backend=unsloth needs a CUDA card"):
        load_policy(RunConfig(model=QWEN2_VL, backend="unsloth"))


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_16_bits_are_bfloat16_where_the_card_has_it_and_float16_where_not(
    monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool
) -> None:
    card, cpu = torch.device("cuda", 0), torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    assert chosen_dtype("auto", card) == (torch.bfloat16 if has_bfloat16 else torch.float16)
    assert chosen_dtype("auto", cpu) == torch.float32
    assert chosen_dtype("bfloat16", cpu) == torch.bfloat16
    assert chosen_dtype("float16", card) == torch.float16
    if has_bfloat16:
        assert chosen_dtype("bfloat16", card) == torch.bfloat16
    else:
        with pytest.raises(HardwareError, match="this card only emulates it"):
            chosen_dtype("bfloat16", card)


def _request(name: str, folder: Path, quantization: Any) -> LoadRequest:
    files = model_files(str(folder))
    settings = model_settings(files)
    return LoadRequest(
        files=files,
        family=family_of(settings),
        config=settings,
        quantization=quantization,
        dtype=torch.bfloat16,
        device=torch.device(name),
        trust_remote_code=False,
    )


def test_unsloth_is_asked_for_a_vision_model_and_says_what_it_lacks(published, monkeypatch) -> None:
    """No card here: a stand-in for the library records what it is asked."""
    folder = published[QWEN2_VL]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "unsloth", None)
    with pytest.raises(HardwareError, match=r"Unsloth cannot be imported .*vgpo-lite\[unsloth\]"):
        backend_named("unsloth").load(_request("cuda", folder, "nf4"))
    asked = {}

    class FastVisionModel:
        @staticmethod
        def from_pretrained(name: str, **settings: object) -> tuple[str, str]:
            asked.update(settings, name=name)
            return "a model", "a processor"

    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(FastVisionModel=FastVisionModel))
    assert backend_named("unsloth").load(_request("cuda", folder, "nf4")) == "a model"
    assert asked == {
        "name": str(folder),
        "load_in_4bit": True,
        "dtype": torch.bfloat16,
        "use_gradient_checkpointing": False,
        "trust_remote_code": False,
    }
    with pytest.raises(ModelError, match="backend=unsloth quantizes 16-bit checkpoints itself"):
        backend_named("unsloth").load(_request("cuda", folder, "stored"))
    with pytest.raises(HardwareError, match="needs a CUDA card"):
        backend_named("unsloth").load(_request("cpu", folder, "nf4"))


def test_a_backend_is_imported_when_it_is_chosen() -> None:
    assert type(backend_named("transformers")).__name__ == "TransformersBackend"
    assert type(backend_named("unsloth")).__name__ == "UnslothBackend"


def test_the_built_in_model_is_a_policy_like_any_other() -> None:
    policy = load_policy(RunConfig())
    assert (policy.model_id, policy.revision, policy.quantization) == ("tiny", None, "nf4")
    assert policy.family.model_type == "qwen2_vl"
    assert 1e6 < policy.parameter_count() < 4e6


@pytest.mark.parametrize("name", SMALLEST_OF_EACH_FAMILY)
def test_a_quantized_policy_reads_images_as_plain_transformers_does(published, name: str) -> None:
    """The tower, merger and positions are the checkpoint's own: without quantization the logits are equal."""
    from tests.hub.data import picture

    policy = load_policy(RunConfig(model=name, quantization="none"))
    model = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32)
    content = [{"type": "image", "image": picture(3)}, {"type": "text", "text": "How many?"}]
    encoded = policy.processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        torch.testing.assert_close(policy.model(**encoded).logits, model(**encoded).logits, rtol=0, atol=1e-5)


def test_a_fetched_model_loads_with_the_network_switched_off(hub: HubServer, published) -> None:
    fetched = load_policy(RunConfig(model=QWEN2_VL)).revision
    program = "from vgpo_lite.models import load_policy; from vgpo_lite.config.schema import RunConfig; "
    program += f"print(load_policy(RunConfig(model={QWEN2_VL!r})).revision)"
    asked = len(hub.requests)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.strip() == fetched
    assert len(hub.requests) == asked
