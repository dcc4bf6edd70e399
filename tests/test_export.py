"""A merge keeps the policy, says so with numbers, and refuses what it cannot keep."""

from __future__ import annotations

import gc
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, pipeline

from tests.cheap_runs import small_disk
from tests.hub.data import picture
from tests.hub.models import GEMMA3, QWEN2_VL, QWEN3_VL, SMALLEST_OF_EACH_FAMILY, UNTIED, write_model
from vgpo_lite.config.schema import LoraSettings, RunConfig
from vgpo_lite.errors import CheckpointError, ConfigError, HardwareError, MergeError, StorageError
from vgpo_lite.export import merge
from vgpo_lite.export.sources import workplace
from vgpo_lite.failpoints import armed
from vgpo_lite.models import load_policy
from vgpo_lite.models.agreement import agreement
from vgpo_lite.models.lora import save_adapter
from vgpo_lite.models.merging import merge_into, read_adapter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.hub.server import HubServer
    from vgpo_lite.models.policy import Policy

LARGE, SMALL = 0.02, 1e-5  # of B's entries: an update that bfloat16 keeps, and one that it rounds away


@pytest.fixture(scope="module")
def published(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in (*SMALLEST_OF_EACH_FAMILY, *UNTIED):
        hub.publish("models", name, write_model(tmp_path_factory.mktemp("models") / "model", name))


@pytest.fixture
def trained(published: None, tmp_path: Path) -> Callable[..., tuple[Policy, Path]]:
    """A policy whose adapters are as if trained, and their folder."""

    def train(*, size: float, folder: str = "adapter", **settings: Any) -> tuple[Policy, Path]:
        policy = load_policy(RunConfig(**settings))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in policy.adapters().items():
                if ".lora_B." in name:
                    parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
        save_adapter(policy, tmp_path / folder)
        return policy, tmp_path / folder

    return train


def _loaded(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder)


def _encoded(processor: Any) -> Any:
    content = [{"type": "image", "image": picture(3)}, {"type": "text", "text": "How many red squares are there?"}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


@pytest.mark.parametrize("name", [*SMALLEST_OF_EACH_FAMILY, UNTIED[2]])
def test_a_merged_folder_says_what_the_policy_says_in_plain_transformers(trained, tmp_path: Path, name: str) -> None:
    policy, adapter = trained(size=LARGE, model=name)
    report = merge(adapter, tmp_path / "merged", dtype="float32")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    processor = AutoProcessor.from_pretrained(tmp_path / "merged")
    encoded = _encoded(processor)
    with torch.no_grad():
        expected = policy.model(**encoded).logits
        with policy.reference():
            base = policy.model(**encoded).logits
        merged = model(**encoded).logits
    assert (merged - expected).abs().max() < 1e-4
    assert (expected - base).abs().max() > 0.1
    assert {type(module).__name__ for module in model.modules() if "4bit" in type(module).__name__} == set()
    assert report.layers == 21
    assert report.agreement is not None
    assert report.agreement.greedy == 1.0
    assert report.agreement.merged_gap < 1e-4 < 0.1 < report.agreement.adapter_gap


def test_a_merged_folder_answers_in_a_pipeline(trained, tmp_path: Path) -> None:
    _, adapter = trained(size=LARGE, model=QWEN2_VL)
    merge(adapter, tmp_path / "merged", verify=False)
    answer_about: Any = pipeline("image-text-to-text", model=str(tmp_path / "merged"))
    answer = answer_about(
        text=[{"role": "user", "content": [{"type": "image", "image": picture(2)}, {"type": "text", "text": "Hi"}]}],
        max_new_tokens=4,
        return_full_text=False,
    )
    assert isinstance(answer[0]["generated_text"], str)


def test_a_merged_folder_holds_everything_and_nothing_of_its_making(hub: HubServer, trained, tmp_path: Path) -> None:
    _, adapter = trained(size=LARGE, model=QWEN2_VL)
    umask = os.umask(0o022)
    try:
        report = merge(adapter, tmp_path / "out" / "merged")
    finally:
        os.umask(umask)
    folder = tmp_path / "out" / "merged"
    assert [path.name for path in folder.parent.iterdir()] == ["merged"]
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        (
            "README.md",
            "chat_template.json",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "preprocessor_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ),
        0o644,
    )
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16" == report.dtype
    source = hub.repositories["models", QWEN2_VL].snapshots["main"].folder
    for name in ("generation_config.json", "tokenizer.json", "preprocessor_config.json"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    card = (folder / "README.md").read_text()
    assert f"base_model: {QWEN2_VL}" in card
    assert str(report.revision) in card
    assert report.agreement is not None
    assert f"| largest logit gap, merged and adapter | {report.agreement.merged_gap:.3g} |" in card
    assert f"| largest logit gap, adapter and base | {report.agreement.adapter_gap:.3g} |" in card
    assert "| same most likely token, merged and adapter | 100.0% |" in card


def test_only_adapted_layers_differ_from_what_was_trained(trained, tmp_path: Path) -> None:
    policy, adapter = trained(size=LARGE, model=QWEN3_VL, quantization="none")
    merge(adapter, tmp_path / "merged", dtype="float32", verify=False)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").state_dict()
    original = AutoModelForImageTextToText.from_pretrained(QWEN3_VL, dtype=torch.float32).state_dict()
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name, weight in original.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in tensors:
            weight = weight + 1.0 * tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
        torch.testing.assert_close(merged[name], weight, rtol=0, atol=1e-6)
    assert len(tensors) == 2 * 21 == len(policy.adapters())


def test_the_scale_of_an_adapter_is_alpha_over_r(trained, tmp_path: Path) -> None:
    policy, adapter = trained(size=LARGE, model=QWEN2_VL, lora=LoraSettings(r=4, alpha=32))
    assert read_adapter(adapter).scale == 8.0
    report = merge(adapter, tmp_path / "merged", dtype="float32")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    encoded = _encoded(policy.processor)
    with torch.no_grad():
        torch.testing.assert_close(model(**encoded).logits, policy.model(**encoded).logits, rtol=0, atol=1e-4)
    assert report.rounding_error < 1e-5


@pytest.mark.parametrize("name", SMALLEST_OF_EACH_FAMILY)
def test_adapters_of_the_vision_tower_are_merged_too(trained, tmp_path: Path, name: str) -> None:
    policy, adapter = trained(size=LARGE, model=name, lora=LoraSettings(vision=True))
    report = merge(adapter, tmp_path / "merged", dtype="float32")
    assert report.layers == len(policy.adapters()) / 2 > 21
    assert report.agreement is not None
    assert report.agreement.merged_gap < 1e-3 * report.agreement.adapter_gap


def test_dequantized_is_what_was_trained_and_original_is_not(trained, tmp_path: Path) -> None:
    policy, adapter = trained(size=LARGE, model=QWEN2_VL)
    reports = {
        base: merge(adapter, tmp_path / base, base=base, dtype="float32") for base in ("dequantized", "original")
    }
    encoded = _encoded(policy.processor)
    with torch.no_grad():
        expected = policy.model(**encoded).logits
        gaps = {
            base: float(
                (AutoModelForImageTextToText.from_pretrained(tmp_path / base)(**encoded).logits - expected).abs().max()
            )
            for base in reports
        }
    assert gaps["dequantized"] < 1e-4
    assert gaps["original"] > 0.1
    layer = "model.layers.1.mlp.up_proj"
    tensors = load_file(adapter / "adapter_model.safetensors")
    key = "base_model.model.model.language_model.layers.1.mlp.up_proj"
    update = tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
    checkpoint = AutoModelForImageTextToText.from_pretrained(QWEN2_VL, dtype=torch.float32)
    weight = checkpoint.model.language_model.layers[1].mlp.up_proj.weight.data
    merged = load_file(tmp_path / "original" / "model.safetensors")[f"{layer}.weight"]
    torch.testing.assert_close(merged, weight + update, rtol=0, atol=1e-6)
    codes, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    merged = load_file(tmp_path / "dequantized" / "model.safetensors")[f"{layer}.weight"]
    torch.testing.assert_close(merged, dequantize_4bit(codes, state) + update, rtol=0, atol=1e-6)
    assert "which the adapter was not trained on" in (tmp_path / "original" / "README.md").read_text()


def test_an_update_that_bfloat16_rounds_away_is_kept_in_float32_and_the_card_says_why(trained, tmp_path: Path) -> None:
    _, adapter = trained(size=SMALL, model=QWEN2_VL)
    report = merge(adapter, tmp_path / "merged")
    assert report.dtype == "float32"
    assert report.rounding_error < 0.01
    assert "bfloat16 was given up: the largest logit gap" in report.notes[0]
    assert report.notes[0] in (tmp_path / "merged" / "README.md").read_text()
    assert merge(adapter, tmp_path / "unverified", verify=False).dtype == "float32"
    with pytest.raises(MergeError, match=r"would not keep the policy\. bfloat16 was given up: the largest logit gap"):
        merge(adapter, tmp_path / "narrow", dtype="bfloat16")
    with pytest.raises(MergeError, match=r"rounding costs [0-9]+% of the update"):
        merge(adapter, tmp_path / "narrow", dtype="bfloat16", verify=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged", "unverified"]


def test_no_merge_is_stored_in_a_format_that_its_model_cannot_be_computed_in(
    published: None, trained, hub: HubServer, tmp_path: Path
) -> None:
    folder = shutil.copytree(hub.repositories["models", GEMMA3].snapshots["main"].folder, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "float16"}))
    _, adapter = trained(size=LARGE, model=str(folder))
    with pytest.raises(ConfigError, match=r"base.* would be stored in float16.*Choose dtype=bfloat16 or dtype=float32"):
        merge(adapter, tmp_path / "merged", dtype="float16")
    assert not (tmp_path / "merged").exists()
    assert merge(adapter, tmp_path / "merged", verify=False).dtype == "bfloat16"  # and not the checkpoint's own


def test_merging_back_to_4_bits_would_have_lost_the_update_that_a_merge_keeps(trained, tmp_path: Path) -> None:
    _, folder = trained(size=SMALL, model=QWEN2_VL)
    adapter = read_adapter(folder)
    model = AutoModelForImageTextToText.from_pretrained(QWEN2_VL, dtype=torch.float32)
    kept, whole = 0.0, 0.0
    for name, (a, b) in adapter.layers.items():
        weight, update = model.get_submodule(name).get_parameter("weight").data, b @ a
        codes, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        base = dequantize_4bit(codes, state)
        back = dequantize_4bit(*quantize_4bit(base + update, quant_type="nf4", compress_statistics=True))
        again = dequantize_4bit(*quantize_4bit(base, quant_type="nf4", compress_statistics=True))
        kept += float(((back - again) * update).sum())
        whole += float(update.square().sum())
    assert abs(kept / whole) < 0.1
    assert merge_into(model, adapter, torch.float32) < 0.01


def test_what_a_run_in_bfloat16_trained_on_is_what_its_merge_starts_from(trained, tmp_path: Path) -> None:
    policy, adapter = trained(size=LARGE, model=QWEN2_VL, dtype="bfloat16")
    merge(adapter, tmp_path / "merged", dtype="float32", verify=False)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    tensors = load_file(adapter / "adapter_model.safetensors")
    bare: Any = policy.family.bare(policy.model)
    layer = bare.model.language_model.layers[2].self_attn.q_proj.base_layer
    trained_on = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert trained_on.dtype == torch.bfloat16
    key = "base_model.model.model.language_model.layers.2.self_attn.q_proj"
    expected = trained_on.float() + tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
    torch.testing.assert_close(merged["model.layers.2.self_attn.q_proj.weight"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_run_directory_is_merged_like_its_adapter(trained, tmp_path: Path, quantization: str) -> None:
    _, adapter = trained(size=LARGE, folder="run/adapter", model=QWEN2_VL, quantization=quantization)
    (adapter.parent / "status.json").write_text(json.dumps({"state": "finished", "updated_steps": 2}))
    from_run = merge(adapter.parent, tmp_path / "from-run", dtype="float32", verify=False)
    from_adapter = merge(adapter, tmp_path / "from-adapter", dtype="float32", verify=False)
    assert from_run.rounding_error == from_adapter.rounding_error
    left, right = (load_file(tmp_path / name / "model.safetensors") for name in ("from-run", "from-adapter"))
    assert all(torch.equal(left[name], right[name]) for name in left.keys() | right.keys())


def test_a_foreign_adapter_on_some_layers_is_merged_whole(trained, tmp_path: Path) -> None:
    _, adapter = trained(size=LARGE, model=QWEN2_VL)
    path = adapter / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if ".q_proj." in name}, path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "vgpo_lite.json").unlink()
    report = merge(adapter, tmp_path / "merged", dtype="float32")
    assert report.layers == 3
    assert report.agreement is not None
    assert report.agreement.merged_gap < 1e-3 * report.agreement.adapter_gap


def _spoil(adapter: Path, how: str) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    some = next(name for name in tensors if ".k_proj.lora_B." in name)
    if how == "born":
        tensors = {name: tensor * (".lora_A." in name) for name, tensor in tensors.items()}
    elif how == "half":
        tensors.pop(some)
    elif how == "strange":
        tensors["base_model.model.lm_head.weight"] = torch.ones(3)
    elif how == "homeless":
        for half in ("A", "B"):
            name = some.replace("lora_B", f"lora_{half}")
            tensors[name.replace("layers.0", "layers.9")] = tensors.pop(name)
    elif how == "shape":
        tensors[some] = tensors[some][:-1].contiguous()
    elif how == "nan":
        tensors[some][0, 0] = float("nan")
    elif how == "nameless":
        config = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("born", "learned nothing: every B is zero"),
        ("half", r"leave out 1 weights .*layers\.0\.self_attn\.k_proj \(half of a pair\)"),
        ("strange", r"leave out 1 weights .*: base_model\.model\.lm_head\.weight"),
        ("homeless", r"leave out 1 weights .*layers\.9\.self_attn\.k_proj"),
        ("shape", r"leave out 1 weights .*layers\.0\.self_attn\.k_proj"),
        ("nan", r"not finite, such as those of .*k_proj"),
        ("nameless", "does not say which model"),
    ],
)
def test_an_adapter_that_cannot_be_kept_whole_is_refused_and_nothing_is_left(
    trained, tmp_path: Path, how: str, told: str
) -> None:
    _, adapter = trained(size=LARGE, model=QWEN2_VL)
    _spoil(adapter, how)
    with pytest.raises(CheckpointError if how == "nameless" else MergeError, match=told):
        merge(adapter, tmp_path / "merged", dtype="float32")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_disk_that_refuses_a_merge_is_told_and_nothing_is_left_and_the_next_merge_sweeps_what_a_kill_left(
    trained, tmp_path: Path
) -> None:
    _, adapter = trained(size=LARGE, model=QWEN2_VL)
    for site in ("export.before_files", "export.before_rename"):
        with armed(f"{site}=raise:OSError:28"), pytest.raises(StorageError, match="No space left") as caught:
            merge(adapter, tmp_path / "merged", dtype="float32", verify=False)
        assert caught.value.exit_code == 6
        assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    with small_disk(), pytest.raises(StorageError, match="File too large"):
        merge(adapter, tmp_path / "merged", dtype="float32", verify=False)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    (tmp_path / ".merged.77.tmp").mkdir()
    (tmp_path / ".merged.77.tmp" / "tmpabc.safetensors").write_bytes(b"as large as the real one")
    merge(adapter, tmp_path / "merged", dtype="float32", verify=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]


def test_a_run_that_learned_nothing_or_is_not_finished_is_refused(trained, tmp_path: Path) -> None:
    _, adapter = trained(size=LARGE, folder="run/adapter", model=QWEN2_VL)
    run = adapter.parent
    (run / "status.json").write_text(json.dumps({"state": "finished", "updated_steps": 0}))
    with pytest.raises(MergeError, match="never moved its adapter"):
        merge(run, tmp_path / "merged")
    shutil.rmtree(adapter)
    (run / "status.json").write_text(
        json.dumps({"state": "failed", "reason": "in no group did one earn more.", "continue_with": "go on"})
    )
    with pytest.raises(MergeError, match=r"\(failed\) has written no adapter: in no .*more\. Finish it first: go on$"):
        merge(run, tmp_path / "merged")
    (run / "status.json").write_text(json.dumps({"state": "running"}))
    with pytest.raises(MergeError, match=r"\(running\) has written no adapter\. Finish it first: vgpo-lite train"):
        merge(run, tmp_path / "merged")
    (run / "status.json").write_text('{"state"')
    with pytest.raises(CheckpointError, match=r"status\.json is damaged"):
        merge(run, tmp_path / "merged")
    with pytest.raises(CheckpointError, match="holds no adapter"):
        merge(tmp_path / "nowhere", tmp_path / "merged")


def test_a_folder_that_holds_something_is_not_written_into(trained, tmp_path: Path) -> None:
    _, adapter = trained(size=LARGE, model=QWEN2_VL)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "thesis.tex").write_text("chapter 1")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        merge(adapter, tmp_path / "merged")
    (tmp_path / "merged" / "thesis.tex").unlink()
    (tmp_path / ".merged.1.tmp").mkdir()
    (tmp_path / ".merged.1.tmp" / "model.safetensors").write_text("what a killed merge left")
    merge(adapter, tmp_path / "merged", verify=False)
    assert (tmp_path / "merged" / "config.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]


def test_no_two_models_are_in_memory_at_once(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vgpo_lite.export import merging

    _, adapter = trained(size=SMALL, model=QWEN2_VL)
    gc.collect()
    elsewhere = _weights_in_memory()
    seen = []

    def reload(*arguments: Any, **settings: Any) -> Any:
        seen.append(_weights_in_memory() - elsewhere)
        return original(*arguments, **settings)

    original = merging.reload
    monkeypatch.setattr(merging, "reload", reload)
    merge(adapter, tmp_path / "merged")
    assert seen == [0, 0]  # once for bfloat16, which does not keep the update, and once for float32


def _weights_in_memory() -> int:
    return sum(found.numel() for found in gc.get_objects() if issubclass(type(found), torch.nn.Parameter))


def test_a_checkpoint_stored_in_nf4_is_merged_into_16_bits_and_has_no_original(
    hub: HubServer, trained, tmp_path: Path
) -> None:
    folder = tmp_path / "stored"
    shutil.copytree(hub.repositories["models", QWEN3_VL].snapshots["main"].folder, folder)
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["model.visual", "lm_head"]
    )
    stored = AutoModelForImageTextToText.from_pretrained(
        folder, quantization_config=settings, dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    for shard in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        shard.unlink()
    stored.save_pretrained(folder)
    policy, adapter = trained(size=LARGE, model=str(folder))
    report = merge(adapter, tmp_path / "merged", dtype="float32")
    assert report.model_id == str(folder)
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    encoded = _encoded(policy.processor)
    with torch.no_grad():
        merged = _loaded(tmp_path / "merged")(**encoded).logits
        torch.testing.assert_close(merged, policy.model(**encoded).logits, rtol=0, atol=1e-4)
    with pytest.raises(MergeError, match="stored in NF4, so there is no original"):
        merge(adapter, tmp_path / "original", base="original")


def test_the_built_in_model_is_merged_like_any_other(trained, tmp_path: Path) -> None:
    _, adapter = trained(size=LARGE, model="tiny")
    report = merge(adapter, tmp_path / "merged")
    assert (report.model_id, report.revision) == ("tiny", None)
    assert "base_model" not in (tmp_path / "merged" / "README.md").read_text()
    AutoProcessor.from_pretrained(tmp_path / "merged")
    AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")


def test_a_merge_works_in_float32_where_it_fits_and_says_what_it_needs_where_nothing_does() -> None:
    card, cpu, wide, narrow = torch.device("cuda", 0), torch.device("cpu"), torch.float32, torch.bfloat16
    two_billion = 2 * 10**9

    def place(card_gb: float, cpu_gb: float) -> tuple[torch.device, torch.dtype]:
        free = {card: int(card_gb * 1e9), cpu: int(cpu_gb * 1e9)}
        return workplace(two_billion, card, narrow=narrow, free=free.__getitem__)

    assert place(24, 12) == (card, wide)
    assert place(8, 12) == (cpu, wide)
    assert place(8, 6) == (card, narrow)
    assert place(4, 6) == (cpu, narrow)
    with pytest.raises(HardwareError, match=r"merging takes 5\.0 GB of memory, 4\.0 GB are free"):
        place(2, 4)


def test_a_gap_is_the_largest_over_all_positions_and_infinite_where_a_logit_is_not_finite() -> None:
    base = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    adapter = base + torch.tensor([[0.0, 0.5], [-0.25, 0.0]])
    merged = adapter + torch.tensor([[0.0, 0.0], [-3.0, 0.125]])
    found = agreement(merged, adapter, base)
    assert (found.merged_gap, found.adapter_gap, found.greedy, found.positions) == (3.0, 0.5, 0.5, 2)
    merged[0, 0] = float("nan")
    assert agreement(merged, adapter, base).merged_gap == float("inf")
