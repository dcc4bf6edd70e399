"""A limit is known before a run starts, is hard on a card, and ends what cannot fit with exit code 4."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from vgpo_lite.commands.app import app
from vgpo_lite.config.load import load_config
from vgpo_lite.errors import HardwareError, ModelError
from vgpo_lite.memory import enforce_limit, memory_limit
from vgpo_lite.preparation import open_workbench

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def card(monkeypatch):
    """A card of 24 GB that is not there; what was asked of its allocator."""
    asked = []
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=24_000_000_000))
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", lambda share, device: asked.append(share))
    return asked


def test_a_smaller_limit_is_made_hard_on_a_larger_card(card):
    enforce_limit(GPU, 8_600_000_000, context_bytes=600_000_000)
    assert card == [pytest.approx(8 / 24)]
    assert memory_limit(GPU, 8_600_000_000) == 8_600_000_000


def test_without_a_limit_the_card_is_the_limit(card):
    enforce_limit(GPU, None, context_bytes=600_000_000)
    assert card == []
    assert memory_limit(GPU, None) == 24_000_000_000
    assert memory_limit(GPU, 80_000_000_000) == 24_000_000_000


def test_a_cpu_has_no_limit_but_a_written_one(card):
    enforce_limit(CPU, 8_000_000_000, context_bytes=0)
    assert card == []
    assert memory_limit(CPU, None) is None
    assert memory_limit(CPU, 5) == 5


def test_a_run_that_does_not_fit_is_refused_before_its_weights_are_loaded(monkeypatch):
    monkeypatch.setattr("vgpo_lite.preparation.load_policy", lambda _: pytest.fail("weights were loaded"))
    config = load_config(memory={"gpu_memory": 0.006}, data={"limit": 40}, eval={"limit": 4})
    with pytest.raises(HardwareError, match=r"tiny needs .* but may use 6\.00 MB"), open_workbench(config):
        pass


def test_what_the_planner_chose_is_what_the_engine_works_with():
    config = load_config(memory={"gpu_memory": 0.0085}, data={"limit": 40}, eval={"limit": 4})
    with open_workbench(config) as bench:
        assert bench.memory.fits
        assert bench.memory.choices
        assert bench.config.memory.rows_per_micro_batch == bench.engine.settings.rows_per_micro_batch
        assert bench.config.num_generations == config.num_generations


def run_plan(*arguments: str) -> tuple[int, str, str]:
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["plan", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_plan_command_shows_phases_and_whether_they_fit():
    code, told, _ = run_plan("-m", "qwen2-vl-2b", "--pixels", "401408", "--prompt-tokens", "128", "--gpu-memory", "8")
    assert code == 0
    assert "largest prompt of 640 tokens, 512 of them of images" in told
    assert "weights 2.5 GB" in told
    assert "fits into 8.0 GB" in told
    assert "copy for decoding 2.6 GB" in told


def test_the_plan_command_ends_with_4_and_the_ways_out_where_nothing_fits():
    code, told, complaint = run_plan("-m", "qwen2.5-vl-7b", "--pixels", "401408", "--gpu-memory", "8")
    assert code == 4
    assert "does not fit into 8.0 GB" in told
    assert "--model qwen" in complaint


def test_the_plan_command_speaks_json():
    code, told, _ = run_plan("-m", "qwen3-vl-4b", "--pixels", "401408", "--gpu-memory", "8", "--json")
    plan = json.loads(told)
    assert code == 0
    assert plan["fits"]
    assert plan["chosen"]
    assert plan["peak_bytes"] == max(sum(parts.values()) for parts in plan["phases"].values())


def test_a_text_length_without_pixels_is_no_description():
    code, _, complaint = run_plan("-m", "qwen2-vl-2b", "--prompt-tokens", "128")
    assert code == 2
    assert "--pixels" in complaint


def test_a_data_set_can_be_planned_for():
    code, told, _ = run_plan("-m", "tiny", "-d", "shapes", "--set", "data.limit=20", "--set", "device=cpu")
    assert code == 0
    assert "16 of them of images" in told
    assert "estimated" not in told


def test_where_the_tokenizer_is_not_to_be_had_text_is_estimated_and_that_is_told(monkeypatch):
    def absent(config):
        raise ModelError("no such processor")

    monkeypatch.setattr("vgpo_lite.models.loading.processor_alone", absent)
    monkeypatch.setattr("vgpo_lite.models.processor_alone", absent, raising=False)
    code, told, _ = run_plan("-m", "qwen2-vl-2b", "-d", "shapes", "--set", "data.limit=20")
    assert code == 0
    assert "text estimated at 3 bytes a token" in told
