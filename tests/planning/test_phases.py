"""What a phase holds, against what really is allocated, and how it moves with sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from tests.engine.allocations import allocations
from tests.engine.work import PLAIN, advantages_of, shared, taken_gradients
from tests.small_models import make_group, make_prompt, seen_by, small_model, small_policy, with_adapters
from vgpo_lite.config.load import load_config
from vgpo_lite.data_types import Sampling
from vgpo_lite.engine.rollout import DecodePlan, _Batch
from vgpo_lite.models.attention import use_shared_attention
from vgpo_lite.planning import Job, PromptSize, architecture_of, memory_plan, preset_architectures
from vgpo_lite.planning.layer import layer_costs

PROMPT = make_prompt([(16, 20)], text=(12, 20))
GROUP = make_group(PROMPT, (60, 60, 60, 60))
LONG_TEXT = make_prompt([(2, 2)], text=(12, 340))
"""For a family whose images are small here whatever is asked of them."""


def parts_of(job: Job, phase: str) -> dict[str, int]:
    return next(dict(each.parts) for each in memory_plan(job).phases if each.name == phase)


def small_job(policy, prompt=PROMPT, **settings) -> Job:
    config = load_config(
        overrides=[
            "dtype=float32",
            "quantization=none",
            "max_resamples=0",
            "prompts_per_step=1",
            "lora.r=4",
            "num_generations=4",
            "max_completion_length=60",
            "memory.logprob_chunk=32",
            "memory.focus_chunk=16",
            *(f"{key}={value}" for key, value in settings.items()),
        ]
    )
    model = architecture_of(policy.family.bare(policy.model).config.to_dict(), "small")
    tokens = int(prompt.image_mask.sum())
    size = PromptSize(text_tokens=prompt.input_ids.shape[0] - tokens, images=(tokens,))
    return Job(model=model, config=config, largest=size, device="cpu")


def test_what_a_layer_keeps_by_hand():
    # Qwen2-VL-2B in 16 bits with rank 16, bytes of a token. Float32 copies: both norms and five adapted inputs of
    # 1,536, the output projection's 1,536, the product of 8,960. 16 bits: queries and output of 1,536, keys and values
    # of 256, gate, activation and up of 8,960. Float32: the log-sums of 12 heads, seven adapters' 16.
    by_hand = 4 * (7 * 1536 + 1536 + 8960) + 2 * (2 * 1536 + 2 * 256 + 3 * 8960) + 4 * (12 + 7 * 16)
    costs = layer_costs(preset_architectures()["qwen2-vl-2b"], itemsize=2, rank=16, quantized=True)
    assert costs.kept == by_hand
    assert costs.keys_values == 2 * 2 * 256


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen3_vl", "gemma3"])
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("rows", [2, 4])
def test_an_update_allocates_what_was_predicted(model_type, recompute, rows):
    policy = small_policy(model_type)
    policy = replace(policy, model=with_adapters(small_model(model_type, layers=4)).train())
    engine = shared(policy, recompute=recompute, rows_per_micro_batch=rows, logprob_chunk=32, focus_chunk=16)
    prompt = seen_by("gemma3", LONG_TEXT) if model_type == "gemma3" else PROMPT
    group = replace(GROUP, prompt=prompt, decode_focus=torch.zeros(GROUP.completion_ids.shape))

    def learn():
        look = engine.look(group, keep_graph=True, reference=False)
        engine.update(look, advantages_of(group), PLAIN, denominator=1.0)

    engine._features.of(prompt)
    learn()  # kernels are tried out on the first use
    taken_gradients(policy)
    settings = {"gradient_checkpointing": str(recompute).lower(), "memory.rows_per_micro_batch": rows}
    job = small_job(policy, prompt, **settings)
    parts = parts_of(job, "update")
    predicted = (
        sum(parts.values()) - parts["weights"] - parts["adapters"] - parts["optimizer"] - parts["image features"]
    )
    assert allocations(learn).peak == pytest.approx(predicted, rel=0.1)


@pytest.mark.parametrize("fixed", [False, True])
def test_keys_and_values_of_a_rollout_to_the_byte(fixed):
    policy = small_policy("qwen2_vl")
    use_shared_attention(policy.family.bare(policy.model))
    sampling = Sampling(num_generations=4, max_completion_length=60)
    with torch.no_grad():
        batch = _Batch(replace(policy, eos_ids=(0,)), [PROMPT], [0], sampling, DecodePlan(fixed=fixed))
        batch._feed(0, batch._draw(0))
    cache = batch._cache
    job = small_job(policy, **{"eval.limit": 0})
    rooms = job.model.layers * 2 * 4 * 60 * job.model.key * 4  # keys and values, rows, tokens, numbers, float32
    assert sum(held.nbytes for held in cache._own) == rooms
    parts = parts_of(job, "rollout")
    assert sum(held.nbytes for held in cache._of_prompts) == parts["prompt keys and values"]
    assert parts.get("completion keys and values", rooms) == rooms


def test_a_graph_keeps_what_a_step_of_decoding_needs_while_tokens_are_drawn():
    def parts(device="cuda", **changes):
        config = load_config(model="qwen2-vl-2b", **changes)
        size = PromptSize(text_tokens=200, images=(512,))
        job = Job(model=preset_architectures()["qwen2-vl-2b"], config=config, largest=size, device=device)
        return next(phase.parts for phase in memory_plan(job).phases if phase.name == "rollout")

    graph, eager = parts(), parts(memory={"decode_graph": False})
    # 32 rows attending: scores of 12 heads on 712 + 1024 tokens, and a layer's 2 x 128 keys of 1024 tokens in float32;
    # more than the largest weight in 16 bits, 1536 x 8960, with a layer's activations of 32 tokens
    assert graph["decode graph"] == 4 * 32 * (12 * (712 + 1024) + 2 * 128 * 1024)
    assert sum(eager.values()) < sum(graph.values()) <= sum(eager.values()) + graph["decode graph"]
    for other in (eager, parts("cpu"), parts(engine="batched")):
        assert "decode graph" not in other


@effort(max_examples=60, deadline=None)
@given(
    text=st.integers(2, 2000),
    image=st.integers(0, 2000),
    length=st.sampled_from([64, 256, 1024]),
    group=st.sampled_from([2, 8]),
    preset=st.sampled_from(["qwen2-vl-2b", "qwen3-vl-4b", "qwen2.5-vl-7b"]),
)
def test_more_of_anything_never_needs_less(text, image, length, group, preset):
    def peaks(text, image, length, group, rank=16):
        config = load_config(
            model=preset,
            max_completion_length=length,
            num_generations=group,
            lora={"r": rank},
            data={"max_pixels": 4_000_000},
            memory={"rows_per_micro_batch": 2},
        )
        size = PromptSize(text_tokens=text, images=(image,) if image else ())
        return memory_plan(Job(model=preset_architectures()[preset], config=config, largest=size)).phases

    least = peaks(text, image, length, group)
    for more in (
        peaks(text + 100, image, length, group),
        peaks(text, image + 100, length, group),
        peaks(text, image, 2 * length, group),
        peaks(text, image, length, 2 * group),
        peaks(text, image, length, group, rank=32),
    ):
        assert all(a.total_bytes <= b.total_bytes for a, b in zip(least, more, strict=True))


def test_planning_loads_no_torch_and_takes_no_time():
    import subprocess
    import sys

    program = (
        "import sys; from vgpo_lite.config.load import load_config; from vgpo_lite.planning import *\n"
        "job = Job(model=preset_architectures()['qwen2-vl-2b'], config=load_config(model='qwen2-vl-2b'),"
        " largest=PromptSize(text_tokens=9, images=(512,)))\n"
        "fitted(job, limit_bytes=8 * 10**9); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_largest_prompt_is_the_longest_with_the_most_images():
    from vgpo_lite.data_types import Outline
    from vgpo_lite.models import processor_alone
    from vgpo_lite.prompts import largest_prompt, prompt_lengths

    config = load_config()
    processor = processor_alone(config)
    rows = [
        Outline(sample_id=str(place), question=question, image_sizes=sizes, answer="1")
        for place, (question, sizes) in enumerate(
            [
                ("<image>how many ?", ((112, 112),)),
                ("<image>" + "how many red circles are there ? " * 9, ((112, 112),)),
                ("<image><image>how many ?", ((112, 112), (224, 224))),
            ]
        )
    ]
    lengths = prompt_lengths(rows, processor, config.data)
    largest = largest_prompt(rows, processor, config.data)
    assert largest.tokens == max(lengths)
    assert largest.images == (16, 64)
