"""The recipes for cards: what they promise fits by the planner, and only that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cards
from vgpo_lite.config.load import load_config
from vgpo_lite.config.recipes import recipe_names
from vgpo_lite.errors import HardwareError
from vgpo_lite.planning import Job, PromptSize, fitted, preset_architectures, wanted_limit

SMALL = (
    "internvl3-1b",
    "internvl3-2b",
    "llava-onevision-0.5b",
    "smolvlm2-256m",
    "smolvlm2-500m",
    "smolvlm2-2.2b",
    "qwen2-vl-2b",
    "qwen3-vl-2b",
)
MIDDLE = ("qwen2.5-vl-3b", "qwen3-vl-4b")
LARGE = (
    "llava-onevision-7b",
    "qwen2-vl-7b",
    "qwen2.5-vl-7b",
    "qwen3-vl-8b",
)
PROMISED = {
    "8gb": SMALL,
    "12gb": SMALL + MIDDLE,
    "16gb": SMALL + MIDDLE + LARGE,
    "t4": SMALL + MIDDLE + LARGE,
    "24gb": SMALL + MIDDLE + LARGE,
}


def job_on(card: str, preset: str) -> Job:
    """A large image and a long question on a card."""
    config = load_config(model=preset, gpu=card)
    largest = PromptSize(text_tokens=512, images=(10_000,))  # as many tokens of the image as the recipe's budget allows
    return Job(model=preset_architectures()[preset], config=config, largest=largest, eval_rows=200)


def test_every_card_has_promises():
    assert set(recipe_names("gpus")) == set(PROMISED)


@pytest.mark.parametrize(
    ("card", "preset"), [(card, preset) for card, presets in PROMISED.items() for preset in presets]
)
def test_a_promised_model_fits_its_card_with_nothing_written_changed(card, preset):
    job = job_on(card, preset)
    config, plan = fitted(job, limit_bytes=wanted_limit(job.config))
    assert plan.fits
    assert plan.limit_bytes == wanted_limit(job.config)
    assert config.num_generations == 8
    assert config.max_completion_length == (2048 if card == "24gb" else 1024)
    assert config.data.pixel_budget == (802_816 if card == "24gb" else 401_408)  # no image had to lose detail


def test_a_7b_model_is_refused_on_8_gb():
    job = job_on("8gb", "qwen2.5-vl-7b")
    with pytest.raises(HardwareError):
        fitted(job, limit_bytes=wanted_limit(job.config))


def test_a_t4_computes_gemma_in_float32_as_its_recipe_says():
    job = job_on("t4", "gemma3-4b")
    with pytest.raises(HardwareError, match="set dtype=float32"):
        fitted(job, limit_bytes=wanted_limit(job.config))
    job = job.with_config(load_config(model="gemma3-4b", gpu="t4", overrides=["dtype=float32"]))
    assert fitted(job, limit_bytes=wanted_limit(job.config))[1].fits
    recipe = (Path(cards.__file__).parents[1] / "recipes" / "gpus" / "t4.yaml").read_text()
    assert "--set dtype=float32" in recipe.splitlines()[0]


def test_a_t4_computes_in_float16():
    config = load_config(model="qwen2-vl-2b", gpu="t4", recipe="vgpo")
    assert config.dtype == "float16"
    assert config.sources["dtype"].startswith("card recipe t4")


def test_a_run_recipe_and_set_win_over_a_card():
    config = load_config(model="qwen2-vl-2b", gpu="24gb", overrides=["max_completion_length=300"])
    assert config.max_completion_length == 300
    assert config.memory.gpu_memory == 24.0


def test_the_committed_predictions_are_those_of_the_plan():
    results = Path(cards.__file__).parent / "results"
    gpu = results / "gpu.json"
    log = json.loads(gpu.read_text())["measurements"]["log"] if gpu.exists() else []
    for name, table in (("cards", cards.cards_table(log)), ("cards-changes", cards.changes_table())):
        written = json.loads((results / f"{name}.json").read_text())["measurements"]["table"]
        assert written == table, f"results/{name}.json is of an older plan: run `python benchmarks/cards.py`"


def test_every_cell_of_the_table_by_card_says_whether_it_is_predicted_or_measured():
    table = cards.cards_table([])
    assert [row[-1] for row in table["rows"]] == ["not measured"] * len(preset_architectures())
    assert all("predicted" in cell for row in table["rows"] for cell in row[1:-1])
    job = {"model": "qwen2-vl-2b", "limit_gb": 8, "image_tokens": 256, "generations": 8, "completion": 256}
    measured = {"peak_bytes": {"rollout": 3_000_000_000, "update": 4_100_000_000}, "step_seconds": 21.04}
    log = [
        {"job": {**job, "side": "ours", "smoke": False}, "result": measured},
        {"job": {**job, "side": "trl", "smoke": False}, "result": measured},
        {"job": {**job, "side": "ours", "smoke": True}, "result": measured},
        {"job": {**job, "limit_gb": 4, "side": "ours", "smoke": False}, "result": {"failed": "out of memory"}},
    ]
    assert cards.measured_cell("qwen2-vl-2b", log) == "8 GB card: 4.1 GB, 21.0 s (256 image tokens, 8 x 256)"
    assert cards.measured_cell("qwen2-vl-7b", log) == "not measured"


def test_a_model_that_needs_a_choice_or_does_not_fit_says_so_in_its_cell():
    assert cards.predicted_cell("qwen3-vl-4b", "8gb").endswith(" predicted, memory.prompts_per_decode=2")
    assert cards.predicted_cell("qwen2.5-vl-7b", "8gb").startswith("does not fit: ")
