"""Where a model's files come from, and what the user is told when they do not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants

from tests.hub.models import QWEN2_VL
from vgpo_lite.errors import ModelError, StorageError
from vgpo_lite.models.hub import model_files

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.hub.server import HubServer


def test_a_hub_model_is_fetched_once_and_its_commit_recorded(hub: HubServer, tmp_path: Path, published) -> None:
    shutil.copytree(published[QWEN2_VL], tmp_path / "model")
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"a pickle nobody needs")
    (tmp_path / "model" / "training_args.py").write_text("raise SystemExit\n")
    commit = hub.publish("models", "stand-in/once", tmp_path / "model")
    files = model_files("stand-in/once")
    assert (files.model_id, files.revision) == ("stand-in/once", commit)
    assert files.config["model_type"] == "qwen2_vl"
    assert sorted(path.suffix for path in files.folder.iterdir() if path.suffix not in (".json", ".safetensors")) == []
    fetched = len(hub.downloads)
    assert model_files("stand-in/once") == files
    assert len(hub.downloads) == fetched


def test_a_revision_is_resolved_to_its_commit(hub: HubServer, tmp_path: Path, published) -> None:
    shutil.copytree(published[QWEN2_VL], tmp_path / "old")
    shutil.copytree(published[QWEN2_VL], tmp_path / "new")
    (tmp_path / "new" / "note.json").write_text("{}")
    old = hub.publish("models", "stand-in/revised", tmp_path / "old", revision="v1")
    new = hub.publish("models", "stand-in/revised", tmp_path / "new")
    assert model_files("stand-in/revised").revision == new
    assert model_files("stand-in/revised", revision="v1").revision == old
    assert model_files("stand-in/revised", revision=old).revision == old
    with pytest.raises(ModelError, match="no revision 'v2'"):
        model_files("stand-in/revised", revision="v2")


@pytest.mark.parametrize("failure", [None, 503])
def test_a_fetched_model_is_used_when_the_hub_cannot_be_reached(
    hub: HubServer, published, tmp_path: Path, failure: int | None
) -> None:
    name = f"stand-in/cached-{failure}"
    shutil.copytree(published[QWEN2_VL], tmp_path / "model")
    hub.publish("models", name, tmp_path / "model")
    fetched = model_files(name)
    with hub.unreachable(status=failure):
        assert model_files(name) == fetched
        assert model_files(name, revision=fetched.revision) == fetched
        with pytest.raises(ModelError, match=r"stand-in/never is not on this disk and .* cannot be reached"):
            model_files("stand-in/never")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Qwen/Qwen2-VL-2B-Instuct", r"hub has no model .* Did you mean Qwen/Qwen2-VL-2B-Instruct\?"),
        ("qwen2-vl-2", r"no preset, folder or hub id\. Did you mean qwen2-vl-2b\?"),
        ("somebody/else", "Presets: .*qwen3-vl-2b"),
        ("not a name at all", "no preset, folder or hub id"),
    ],
)
def test_a_wrong_name_is_told_the_nearest_right_one(hub: HubServer, name: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        model_files(name)


def test_a_gated_model_says_what_to_do_without_a_token_and_with_the_wrong_one(
    hub: HubServer, tmp_path: Path, published, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("models", "stand-in/gated-model", published[QWEN2_VL])
    hub.restrict("models", "stand-in/gated-model", "gated", ("hf_reader",))
    hub.tokens.add("hf_stranger")
    with pytest.raises(ModelError, match=r"is gated: accept its terms .* log in with `hf auth login`"):
        model_files("stand-in/gated-model")
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    with pytest.raises(ModelError, match="your token may not read stand-in/gated-model"):
        model_files("stand-in/gated-model")
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    with pytest.raises(ModelError, match="does not know your token"):
        model_files("stand-in/gated-model")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert model_files("stand-in/gated-model").model_id == "stand-in/gated-model"


def test_a_private_model_says_that_it_may_be_private(hub: HubServer, published) -> None:
    hub.publish("models", "stand-in/private-model", published[QWEN2_VL])
    hub.restrict("models", "stand-in/private-model", "private", ("hf_owner",))
    with pytest.raises(ModelError, match="no model stand-in/private-model, or it is private"):
        model_files("stand-in/private-model")


def test_a_model_larger_than_the_disk_is_not_begun(hub: HubServer, tmp_path: Path, published) -> None:
    shutil.copytree(published[QWEN2_VL], tmp_path / "model")
    hub.publish("models", "stand-in/huge", tmp_path / "model")
    entries = hub.repositories["models", "stand-in/huge"].snapshots["main"].entries
    for name, entry in entries.items():
        if name.endswith(".safetensors"):
            entries[name] = dataclasses.replace(entry, size=10**17)
    with pytest.raises(StorageError, match=r"stand-in/huge needs 300000000.0 GB more .* GB free. .* HF_HOME"):
        model_files("stand-in/huge")
    assert not [path for path in hub.downloads if path.startswith("stand-in/huge/") and path.endswith(".safetensors")]


def test_a_disk_that_refuses_is_a_storage_error(hub: HubServer, tmp_path: Path, published) -> None:
    hub.publish("models", "stand-in/unwritable", published[QWEN2_VL])
    blocked = Path(constants.HF_HUB_CACHE) / "models--stand-in--unwritable"
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("a file where a folder must be\n")
    with pytest.raises(StorageError, match="stand-in/unwritable cannot be fetched into"):
        model_files("stand-in/unwritable")


CONFIGS: Mapping[str, tuple[Mapping[str, object], str]] = {
    "other": (
        {"model_type": "llava"},
        "'llava' model, which is not supported; expected one of gemma3, internvl, llava_onevision, qwen2_5_vl, "
        "qwen2_vl, qwen3_vl, smolvlm",
    ),
    "near": ({"model_type": "qwen3_vl_moe"}, "The nearest is qwen3_vl"),
    "none": ({"hidden_size": 8}, "names no model_type"),
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized with gptq"),
    "awq": ({"quantization_config": {"quant_method": "awq"}}, "quantized with awq"),
    "int8": ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "bitsandbytes int8"),
    "fp4": ({"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}}, "bitsandbytes fp4"),
}


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("place", ["hub", "folder"])
def test_a_model_that_cannot_be_trained_is_refused_before_its_weights_are_fetched(
    hub: HubServer, tmp_path: Path, published, case: str, place: str
) -> None:
    change, told = CONFIGS[case]
    shutil.copytree(published[QWEN2_VL], tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = {} if case == "none" else json.loads(path.read_text())
    path.write_text(json.dumps(config | dict(change)))
    name = str(tmp_path / "model")
    if place == "hub":
        name = f"stand-in/config-{case}"
        hub.publish("models", name, tmp_path / "model")
    with pytest.raises(ModelError, match=told):
        model_files(name)
    assert not [path for path in hub.downloads if path.startswith(f"{name}/") and path.endswith(".safetensors")]


def test_a_folder_says_what_is_missing_from_it(tmp_path: Path, published) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        model_files(str(tmp_path))
    folder = tmp_path / "model"
    shutil.copytree(published[QWEN2_VL], folder)
    assert model_files(str(folder)).model_id == str(folder)
    assert model_files(str(folder)).revision is None
    with pytest.raises(ModelError, match=r"revision is 'v1', but .* comes from no hub"):
        model_files(str(folder), revision="v1")
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"incomplete: model-00002-of-00003\.safetensors is missing"):
        model_files(str(folder))
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, a pickle that can run code"):
        model_files(str(folder))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        model_files(str(folder))
    (folder / "config.json").write_text('{"model_type": "qwen2')
    with pytest.raises(ModelError, match=r"config\.json is damaged"):
        model_files(str(folder))


def test_without_weights_a_few_files_are_fetched_and_the_weights_still_come_when_they_are_wanted(
    hub: HubServer, tmp_path: Path, published
) -> None:
    shutil.copytree(published[QWEN2_VL], tmp_path / "model")
    hub.publish("models", "stand-in/light", tmp_path / "model")
    light = model_files("stand-in/light", weights=False)
    assert (light.folder / "tokenizer.json").is_file()
    assert not list(light.folder.glob("*.safetensors"))
    with hub.unreachable():
        assert model_files("stand-in/light", weights=False) == light
        with pytest.raises(ModelError, match=r"incomplete|no weights"):
            model_files("stand-in/light")
    assert list(model_files("stand-in/light").folder.glob("*.safetensors"))
