"""What is chosen so that a run fits, what is never touched, and what a refusal promises."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from vgpo_lite.config.load import load_config
from vgpo_lite.errors import HardwareError
from vgpo_lite.planning import Job, PromptSize, fitted, memory_plan, preset_architectures, would_fit
from vgpo_lite.planning.choice import changed

PROMPT = PromptSize(text_tokens=200, images=(512,))
GB = 10**9


def job_of(preset: str, *overrides: str) -> Job:
    config = load_config(model=preset, overrides=list(overrides))
    return Job(model=preset_architectures()[preset], config=config, largest=PROMPT, eval_rows=200)


def test_where_everything_fits_nothing_is_chosen():
    job = job_of("qwen2-vl-2b", "decode_weights=quantized")
    config, plan = fitted(job, limit_bytes=8 * GB)
    assert config is job.config
    assert plan.choices == ()
    assert plan.fits


def test_what_is_auto_shrinks_until_the_run_fits_and_is_told_with_its_price():
    job = job_of("qwen3-vl-4b")
    assert not memory_plan(job, limit_bytes=8 * GB).fits
    config, plan = fitted(job, limit_bytes=8 * GB)
    assert plan.fits
    assert plan.needed_bytes <= 8 * GB
    assert config.memory.prompts_per_decode == 2
    assert plan.choices == (
        "memory.prompts_per_decode=2, which was auto: fewer groups decode together, which takes longer",
    )
    assert config.sources["memory.prompts_per_decode"] == "chosen by the planner"
    again = memory_plan(job.with_config(config), limit_bytes=8 * GB)
    assert again.needed_bytes == plan.needed_bytes


def test_where_there_is_room_a_copy_decodes_and_its_memory_is_told():
    job = job_of("qwen2-vl-2b")
    config, plan = fitted(job, limit_bytes=8 * GB)
    assert config.decode_weights == "copy"
    assert config.sources["decode_weights"] == "chosen by the planner"
    assert plan.choices == (
        "decode_weights=copy, which was auto: decodes without dequantizing, takes the memory of the copy",
    )
    # 28 layers: queries, output 1536 x 1536; keys, values 1536 x 256; three of 1536 x 8960; two bytes each
    copy = 2 * 28 * (2 * 1536 * 1536 + 2 * 1536 * 256 + 3 * 1536 * 8960)
    before = memory_plan(job, limit_bytes=8 * GB)
    assert before.fits
    for phase, without in zip(plan.phases, before.phases, strict=True):
        assert phase.parts["copy for decoding"] == copy
        assert phase.total_bytes == without.total_bytes + copy


@pytest.mark.parametrize(
    ("limit", "device", "overrides"),
    [
        (5 * GB, "cuda", []),
        (8 * GB, "cpu", []),
        (None, "cuda", []),
        (24 * GB, "cuda", ["quantization=none"]),
        (24 * GB, "cuda", ["backend=unsloth"]),
    ],
    ids=["no room", "no GPU", "no limit known", "nothing to dequantize", "patched layers"],
)
def test_elsewhere_the_model_itself_decodes(limit, device, overrides):
    job = replace(job_of("qwen2-vl-2b", *overrides), device=device)
    config, plan = fitted(job, limit_bytes=limit)
    assert not config.decodes_from_copy
    assert all("copy for decoding" not in phase.parts for phase in plan.phases)


def test_a_copy_that_was_asked_for_and_does_not_fit_is_refused_with_the_way_out():
    with pytest.raises(HardwareError, match="--set decode_weights=quantized"):
        fitted(job_of("qwen2-vl-2b", "decode_weights=copy"), limit_bytes=5 * GB)


def test_a_written_value_is_never_changed_nor_is_the_group():
    written = "memory.prompts_per_decode=4"
    with pytest.raises(HardwareError, match="qwen3-vl-4b needs"):
        fitted(job_of("qwen3-vl-4b", written), limit_bytes=8 * GB)
    config, _ = fitted(job_of("qwen3-vl-4b"), limit_bytes=7 * GB)
    assert config.num_generations == 8
    assert config.max_completion_length == 1024
    assert config.data.max_pixels == 401_408


def test_images_shrink_last_and_only_where_their_budget_is_auto():
    limit = _least_limit(job_of("qwen2.5-vl-7b")) - 20_000_000
    with pytest.raises(HardwareError):
        fitted(job_of("qwen2.5-vl-7b"), limit_bytes=limit)
    config, plan = fitted(job_of("qwen2.5-vl-7b", "data.max_pixels=auto"), limit_bytes=limit)
    assert plan.fits
    assert isinstance(config.data.max_pixels, int)
    assert config.data.max_pixels < 401_408
    assert any("images lose detail" in choice for choice in plan.choices)


def _least_limit(job: Job) -> int:
    """The smallest limit that a job can be made to fit, to 10 MB."""
    low, high = 0, 40 * GB
    while high - low > 10_000_000:
        middle = (low + high) // 2
        try:
            fitted(job, limit_bytes=middle)
            high = middle
        except HardwareError:
            low = middle
    return high


@pytest.mark.parametrize(
    ("preset", "limit", "overrides"),
    [
        ("qwen3-vl-4b", 8, ["memory.prompts_per_decode=4"]),
        ("qwen2.5-vl-3b", 6, ["gradient_checkpointing=false"]),
        ("qwen2.5-vl-7b", 8.8, []),
        ("qwen2-vl-2b", 4, ["quantization=none"]),
    ],
)
def test_every_way_out_of_a_refusal_fits_when_it_is_taken(preset, limit, overrides):
    limit_bytes = int(limit * GB)
    job = job_of(preset, *overrides)
    with pytest.raises(HardwareError) as refusal:
        fitted(job, limit_bytes=limit_bytes)
    assert refusal.value.exit_code == 4
    ways = [line.strip() for line in str(refusal.value).splitlines()[1:]]
    assert ways
    assert ways == would_fit(job, limit_bytes)
    for way in ways:
        taken = dict(re.findall(r"--set (\S+)=(\S+)", way))
        model = re.findall(r"--model (\S+)", way)
        config = load_config(
            model=model[0] if model else preset, overrides=[*overrides, *(f"{k}={v}" for k, v in taken.items())]
        )
        tried = replace(job.with_config(config), model=preset_architectures()[model[0] if model else preset])
        assert fitted(tried, limit_bytes=limit_bytes)[1].fits


def test_a_model_whose_weights_alone_are_too_large_is_refused_with_smaller_models():
    with pytest.raises(HardwareError, match=r"6\.90 GB of it weights.*\n") as refusal:
        fitted(job_of("qwen2.5-vl-7b"), limit_bytes=6 * GB)
    assert "--model qwen2.5-vl-3b" in str(refusal.value)


def test_a_change_leaves_the_other_settings_of_its_section():
    config = changed(load_config(), [("memory.logprob_chunk", 64), ("num_generations", 4)])
    assert (config.memory.logprob_chunk, config.memory.focus_chunk, config.num_generations) == (64, "auto", 4)
