"""The recipes for cards: what they promise fits by the planner, and only that."""

from __future__ import annotations

import pytest

from vgpo_lite.config.load import load_config
from vgpo_lite.config.recipes import recipe_names
from vgpo_lite.errors import HardwareError
from vgpo_lite.planning import Job, PromptSize, fitted, preset_architectures, wanted_limit

SMALL = ("qwen2-vl-2b", "qwen3-vl-2b")
MIDDLE = ("qwen2.5-vl-3b", "qwen3-vl-4b")
LARGE = ("qwen2-vl-7b", "qwen2.5-vl-7b", "qwen3-vl-8b")
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


def test_a_t4_computes_in_float16():
    config = load_config(model="qwen2-vl-2b", gpu="t4", recipe="vgpo")
    assert config.dtype == "float16"
    assert config.sources["dtype"].startswith("card recipe t4")


def test_a_run_recipe_and_set_win_over_a_card():
    config = load_config(model="qwen2-vl-2b", gpu="24gb", overrides=["max_completion_length=300"])
    assert config.max_completion_length == 300
    assert config.memory.gpu_memory == 24.0
