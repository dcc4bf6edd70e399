"""Adapters: drawn from a seed, continued from a folder, watched, copied and saved."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from tests.hub.models import QWEN2_5_VL, QWEN2_VL, QWEN3_VL, SMALLEST_OF_EACH_FAMILY
from vgpo_lite.config.schema import LoraSettings, RunConfig
from vgpo_lite.errors import CheckpointError
from vgpo_lite.models import load_policy
from vgpo_lite.models.lora import adapter_snapshot, adapter_state, load_adapter_state, save_adapter, unmoved_adapters

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.hub.server import HubServer
    from vgpo_lite.models.policy import Policy


def learned(policy: Policy, *, size: float = 0.02, seed: int = 1) -> Policy:
    """Give the adapters a B that is not zero, as if they had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.adapters().items():
            if ".lora_B." in name:
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.fixture(scope="module")
def saved(published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the small Qwen2-VL."""
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    save_adapter(learned(load_policy(RunConfig(model=QWEN2_VL))), folder)
    return folder


def equal(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


def test_the_same_seed_draws_the_same_adapters_and_leaves_the_generators_alone(published) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = adapter_state(load_policy(RunConfig(model=QWEN2_VL, seed=4)))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(321)
    again = adapter_state(load_policy(RunConfig(model=QWEN2_VL, seed=4)))
    other = adapter_state(load_policy(RunConfig(model=QWEN2_VL, seed=5)))
    assert equal(first, again)
    a_names = [name for name in first if ".lora_A." in name]
    assert len(a_names) == 21
    assert not any(torch.equal(first[name], other[name]) for name in a_names)
    assert all(not value.any() for name, value in first.items() if ".lora_B." in name)


def test_adapters_are_float32_whatever_the_model_is(published) -> None:
    for dtype in ("float16", "bfloat16"):
        policy = load_policy(RunConfig(model=QWEN2_VL, dtype=dtype, lora=LoraSettings(r=4, alpha=8)))
        assert {parameter.dtype for parameter in policy.adapters().values()} == {torch.float32}
        assert {parameter.shape[0] for name, parameter in policy.adapters().items() if ".lora_A." in name} == {4}


@pytest.mark.parametrize("name", SMALLEST_OF_EACH_FAMILY)
def test_a_saved_adapter_gives_peft_the_same_logits_and_continues_as_it_was(
    published, tmp_path: Path, name: str
) -> None:
    policy = learned(load_policy(RunConfig(model=name, quantization="none")))
    save_adapter(policy, tmp_path / "adapter")
    plain = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32)
    peft = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    continued = load_policy(RunConfig(model=name, quantization="none", adapter=str(tmp_path / "adapter"), seed=9))
    ids = torch.arange(20, 50)[None]
    with torch.no_grad():
        expected = policy.model(input_ids=ids).logits
        torch.testing.assert_close(peft(input_ids=ids).logits, expected, rtol=0, atol=1e-5)
    assert equal(adapter_state(continued), adapter_state(policy))
    assert all(parameter.requires_grad for parameter in continued.adapters().values())


def test_a_saved_adapter_names_its_model_and_commit_and_keeps_the_umask(hub: HubServer, published, tmp_path) -> None:
    policy = load_policy(RunConfig(model=QWEN3_VL))
    asked = len(hub.requests)
    before = os.umask(0o022)
    try:
        save_adapter(policy, tmp_path / "adapter")
    finally:
        os.umask(before)
    assert len(hub.requests) == asked  # promise: no network after the start
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (QWEN3_VL, policy.revision)
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (16, 16, 0.0)
    files = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "adapter").iterdir()}
    # without PEFT's README.md, which names a folder of this machine
    assert files == dict.fromkeys(("adapter_config.json", "adapter_model.safetensors", "vgpo_lite.json"), 0o644)
    trained_with = json.loads((tmp_path / "adapter" / "vgpo_lite.json").read_text())
    assert trained_with == {"quantization": "nf4", "dtype": "float32"}


def test_a_run_directory_stands_for_its_adapter(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "run" / "adapter")
    policy = load_policy(RunConfig(model=QWEN2_VL, adapter=str(tmp_path / "run")))
    assert adapter_snapshot(policy)[
        "base_model.model.model.language_model.layers.0.mlp.up_proj.lora_B.default.weight"
    ].any()


def test_dropout_of_a_foreign_adapter_is_not_continued(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "adapter")
    change_config(tmp_path / "adapter", lora_dropout=0.2)
    policy = load_policy(RunConfig(model=QWEN2_VL, adapter=str(tmp_path / "adapter")))
    assert not [module for module in policy.model.modules() if isinstance(module, torch.nn.Dropout) and module.p > 0]
    ids = torch.arange(20, 50)[None]
    policy.model.train()
    with torch.no_grad():
        torch.testing.assert_close(
            policy.model(input_ids=ids).logits, policy.model(input_ids=ids).logits, rtol=0, atol=0
        )


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _damage(folder: Path, how: str) -> None:
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if how == "short":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == "header":
        weights.write_bytes(b"\xff" * 100)
    elif how == "no weights":
        weights.unlink()
    elif how == "a pickle":
        weights.unlink()
        (folder / "adapter_model.bin").write_bytes(b"a pickle")
    elif how == "no config":
        config.unlink()
    elif how == "half a config":
        config.write_text(config.read_text()[:50])
    elif how in ("a layer less", "a key more", "another shape"):
        tensors = load_file(weights)
        name = next(name for name in tensors if ".up_proj.lora_A." in name)
        tensor = tensors[name] if how == "a key more" else tensors.pop(name)
        if how == "a key more":
            tensors[name.replace("up_proj", "lm_head")] = tensor.clone()
        if how == "another shape":
            tensors[name] = tensor[:, :-1].contiguous()
        save_file(tensors, weights)
    else:
        key, _, value = how.partition("=")
        change_config(folder, **{key: json.loads(value)})


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("short", r"adapter_model\.safetensors is missing or damaged"),
        ("header", r"adapter_model\.safetensors is missing or damaged"),
        ("no weights", r"adapter_model\.safetensors is missing or damaged"),
        ("a pickle", r"has its weights in adapter_model\.bin, a pickle that can run code"),
        ("no config", "holds no adapter: expected a run directory, or a folder with adapter_config.json"),
        ("half a config", r"adapter_config\.json is missing or damaged"),
        ("a layer less", r"does not fit this model: 1 of its weights .*up_proj\.lora_A\.weight: absent in the adapter"),
        ("a key more", r"lm_head\.lora_A\.weight: \[16, 64\] in the adapter, nothing expected"),
        ("another shape", r"\[16, 63\] in the adapter, \[16, 64\] expected"),
        ('peft_type="IA3"', "of a IA3 adapter"),
        ("use_dora=true", "sets use_dora=True; only plain LoRA"),
        ('modules_to_save=["lm_head"]', "sets modules_to_save"),
        ('init_lora_weights="pissa"', r"changes the base model's weights \(pissa\)"),
        ("r=8", "has r 8, but lora.r is 16. Set lora.r=8."),
        ("lora_alpha=32", "has lora_alpha 32, but lora.alpha is 16. Set lora.alpha=32."),
    ],
)
def test_a_damaged_or_foreign_adapter_is_refused_with_its_reason(
    saved: Path, tmp_path: Path, how: str, told: str
) -> None:
    shutil.copytree(saved, tmp_path / "adapter")
    _damage(tmp_path / "adapter", how)
    with pytest.raises(CheckpointError, match=told):
        load_policy(RunConfig(model=QWEN2_VL, adapter=str(tmp_path / "adapter")))


@pytest.mark.parametrize(
    "config",
    [RunConfig(model=QWEN2_VL, lora=LoraSettings(vision=True)), RunConfig(model="tiny")],
    ids=["vision", "tiny"],
)
def test_an_adapter_of_other_layers_or_another_model_is_refused(saved: Path, config: RunConfig) -> None:
    with pytest.raises(CheckpointError, match="does not fit this model"):
        load_policy(config.model_copy(update={"adapter": str(saved)}))


def test_an_update_that_misses_a_layer_is_seen_and_the_layer_named(published) -> None:
    policy = load_policy(RunConfig(model=QWEN2_5_VL))
    snapshot = adapter_snapshot(policy)
    assert len(unmoved_adapters(policy, snapshot)) == 21
    stuck = "model.language_model.layers.1.self_attn.k_proj"
    with torch.no_grad():
        for name, parameter in policy.adapters().items():
            if ".lora_B." in name and stuck not in name:
                parameter.view(-1)[3] += 1e-12
    assert unmoved_adapters(policy, snapshot) == [stuck]


@pytest.mark.parametrize("name", SMALLEST_OF_EACH_FAMILY)
@pytest.mark.parametrize("vision", [False, True])
def test_the_first_update_moves_every_b_through_4_bits_and_recomputation(published, name: str, vision: bool) -> None:
    from tests.hub.data import picture

    policy = load_policy(RunConfig(model=name, lora=LoraSettings(vision=vision)))
    content = [{"type": "image", "image": picture(3)}, {"type": "text", "text": "How many?"}]
    encoded: Any = policy.processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    snapshot = adapter_snapshot(policy)
    optimizer = torch.optim.SGD(policy.adapters().values(), lr=0.1)
    policy.model(**encoded).logits.logsumexp(-1).sum().backward()
    optimizer.step()
    assert unmoved_adapters(policy, snapshot) == []


def test_a_copied_state_comes_back_and_a_foreign_one_is_refused(published) -> None:
    policy = learned(load_policy(RunConfig(model=QWEN2_VL)))
    state = adapter_state(policy)
    learned(policy, seed=2)
    assert not equal(state, adapter_state(policy))
    load_adapter_state(policy, state)
    assert equal(state, adapter_state(policy))
    name = next(iter(state))
    for wrong in (
        {key: value for key, value in state.items() if key != name},
        state | {"another": torch.zeros(1)},
        state | {name: torch.zeros(1)},
    ):
        with pytest.raises(CheckpointError, match="1 saved adapter weights do not match"):
            load_adapter_state(policy, wrong)
    assert equal(state, adapter_state(policy))
