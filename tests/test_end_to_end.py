"""The whole path as a stranger takes it: download, train, merge, reload with plain transformers, generate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from tests.hub.data import GEOMETRY3K, picture, write_dataset
from tests.hub.gemma import GEMMA3
from tests.hub.models import QWEN2_5_VL, QWEN2_VL, QWEN3_VL, write_model
from tests.hub.server import HubServer
from tests.hub.supervision import supervise
from tests.hub.tiled import SMOLVLM2
from vgpo_lite.config.writing import scalar

PRESETS = {
    "qwen2-vl-2b": QWEN2_VL,
    "qwen2.5-vl-3b": QWEN2_5_VL,
    "qwen3-vl-2b": QWEN3_VL,
    "smolvlm2-500m": SMOLVLM2,
    "gemma3-4b": GEMMA3,
}


def vgpo_lite(*arguments: str, folder: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line in a folder, against the stand-in hub this process's environment names."""
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "vgpo_lite", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("preset", PRESETS)
def test_the_readmes_commands_take_a_model_from_the_hub_to_a_merged_folder(
    hub: HubServer, tmp_path: Path, preset: str
) -> None:
    hub.publish("models", PRESETS[preset], supervise(write_model(tmp_path / "model", PRESETS[preset])))
    hub.publish("datasets", GEOMETRY3K, write_dataset(tmp_path / "data", GEOMETRY3K))

    trained = vgpo_lite("train", "--model", preset, "--dataset", "geo3k", "--max-steps", "2", folder=tmp_path)
    run = tmp_path / "runs" / f"{preset}-geo3k"
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["steps"], status["updated_steps"]) == ("finished", 2, 2), trained.stdout
    assert status["before"]["total"] == status["after"]["total"] == 24
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)
    assert all(".layers." in name and "vis" not in name for name in adapter)

    merged = vgpo_lite("merge", str(run), "--output", "merged", "--verify", folder=tmp_path)
    base = hub.repositories["models", PRESETS[preset]].snapshots["main"].commit
    rows = hub.repositories["datasets", GEOMETRY3K].snapshots["main"].commit
    for card in ((run / "adapter" / "README.md").read_text(), (tmp_path / "merged" / "README.md").read_text()):
        assert f"base_model: {PRESETS[preset]}\n" in card
        assert f"datasets:\n- {GEOMETRY3K}\n" in card
        assert f"| base model | `{PRESETS[preset]}` at commit `{base}` |" in card
        assert f"| data set | `{GEOMETRY3K}` at commit `{rows}`, split `train`: " in card
        assert f"\nrevision: {scalar(base)}\n" in card
        assert f"\n  revision: {scalar(rows)}\n" in card
    assert "largest logit gap" in merged.stdout
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert not hasattr(model.config, "quantization_config")
    processor = AutoProcessor.from_pretrained(tmp_path / "merged")
    content = [{"type": "image", "image": picture(3)}, {"type": "text", "text": "How many red squares are there?"}]
    encoded = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        generated = model.generate(**encoded, max_new_tokens=8, do_sample=False)
    assert generated.shape[1] > encoded["input_ids"].shape[1]

    if preset == next(iter(PRESETS)):  # told before any model is looked at
        again = vgpo_lite("train", "--model", preset, "--dataset", "geo3k", folder=tmp_path, check=False)
        assert again.returncode == 2
        assert "--resume auto" in again.stderr


def test_a_merged_model_serves_the_pipeline(hub: HubServer, tmp_path: Path) -> None:
    hub.publish("models", QWEN2_VL, supervise(write_model(tmp_path / "model", QWEN2_VL)))
    hub.publish("datasets", GEOMETRY3K, write_dataset(tmp_path / "data", GEOMETRY3K))
    options = ("--set", "eval.limit=0", "--set", "quantization=none")
    vgpo_lite("train", "-m", "qwen2-vl-2b", "-d", "geo3k", "--max-steps", "1", "-o", "run", *options, folder=tmp_path)
    vgpo_lite("merge", "run", "-o", "merged", folder=tmp_path)
    answer = pipeline("image-text-to-text", model=str(tmp_path / "merged"))
    content = [{"type": "image", "image": picture(2)}, {"type": "text", "text": "How many red squares are there?"}]
    text = answer(text=[{"role": "user", "content": content}], max_new_tokens=6, return_full_text=False)
    assert isinstance(text[0]["generated_text"], str)
    assert text[0]["generated_text"]
