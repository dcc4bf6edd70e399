"""Running out of memory in any phase costs time: the same completions, the same gradient, and nothing kept alive."""

from __future__ import annotations

import gc
import re
import weakref
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.engine.test_counts import IdsAsText
from tests.engine.work import PLAIN, advantages_of, batched, shared, taken_gradients
from tests.small_models import make_group, make_prompt, small_policy
from vgpo_lite.config.load import load_config
from vgpo_lite.data_types import Sampling
from vgpo_lite.engine.backoff import DecodeSizes, Shortage, attempted, smaller_parts
from vgpo_lite.engine.choice import advice, make_engine
from vgpo_lite.engine.patient import PatientEngine
from vgpo_lite.engine.protocol import EngineSettings
from vgpo_lite.errors import HardwareError
from vgpo_lite.planning import Job, PromptSize, memory_plan, preset_architectures, ways_out

PROMPTS = [make_prompt([(2, 3), (4, 2)], seed=1), make_prompt([(3, 3)], text=(2, 5), seed=3), make_prompt([], seed=4)]
GROUPS = [make_group(PROMPTS[1], (4, 2, 7)), make_group(PROMPTS[0], (5, 9, 9, 1, 12))]
SAMPLING = Sampling(num_generations=5, max_completion_length=9, seed=3)
SAME_GRADIENT = 1e-6
"""Promised: norm of the difference over the norm, of the whole gradient."""

OUT_OF_MEMORY = {
    "GPU": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ..."),
    "CPU": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8"),
    "Python": lambda: MemoryError(),
}
ENGINES = {"shared": shared, "batched": batched}


@contextmanager
def faults(policy, *, forward=(), backward=(), too_many=None, error="GPU"):
    """Run out of memory at chosen passes through the middle layer, counted from 0; yields what was passed so far.

    Args:
        policy: Whose layer it is.
        forward: Passes forward that fail, those of recomputation counted.
        backward: Passes backward that fail, when the layers behind have left their gradients.
        too_many: Tokens in a forward, all rows together, from which on it fails.
        error: Which of `OUT_OF_MEMORY`.
    """
    seen = {"forward": 0, "backward": 0}

    def pass_by(kind, places, tokens=0):
        place, seen[kind] = seen[kind], seen[kind] + 1
        if place in places or (too_many is not None and tokens >= too_many):
            raise OUT_OF_MEMORY[error]()

    layer = policy.family.layers(policy.model)[1]
    adapter = next(parameter for parameter in layer.parameters() if parameter.requires_grad)
    hooks = [
        layer.register_forward_pre_hook(lambda _layer, given: pass_by("forward", forward, given[0].shape[:2].numel())),
        adapter.register_post_accumulate_grad_hook(lambda _adapter: pass_by("backward", backward)),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def patient(name, policy, told=None, **settings):
    """A patient engine around the named one."""

    def build(wanted):
        return ENGINES[name](policy, **{key: getattr(wanted, key) for key in EngineSettings.__dataclass_fields__})

    wanted = EngineSettings(**{"recompute": False, **settings})
    return PatientEngine(policy, wanted, build=build, on_backoff=None if told is None else told.append)


def step(engine, policy, *, keep_graph=True, reference=False):
    """The gradient of one step on two groups."""
    objective = replace(PLAIN, kl_coefficient=0.1) if reference else PLAIN
    for group in GROUPS:
        look = engine.look(group, keep_graph=keep_graph, reference=reference)
        engine.update(look, advantages_of(group), objective, denominator=49.0)
    return taken_gradients(policy)


def assert_same_gradient(found, expected):
    assert found.keys() == expected.keys()
    off = sum(float((found[name] - expected[name]).double().square().sum()) for name in expected)
    norm = sum(float(values.double().square().sum()) for values in expected.values())
    assert (off / norm) ** 0.5 <= SAME_GRADIENT


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Each failure collects cycles: what was there before the tests is left out of it."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def policy():
    """In float64: what is left of a difference is no rounding."""
    policy = small_policy("qwen2_vl")
    policy.model.double()
    return replace(policy, dtype=torch.float64)


@pytest.fixture(scope="module")
def sampler():
    """In float32, as decoding writes its log-probabilities."""
    return replace(small_policy("qwen2_vl"), processor=IdsAsText())


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("name", ENGINES)
def test_out_of_memory_early_or_late_in_a_step_leaves_its_gradient_as_it_is(policy, name, rows, recompute):
    sizes = {"recompute": recompute, "rows_per_micro_batch": rows}
    with faults(policy) as places:
        expected = step(patient(name, policy, **sizes), policy)
    assert min(places.values()) >= 2
    for kind, count in places.items():
        for place in {0, count // 2, count - 1}:
            told = []
            with faults(policy, **{kind: {place}}):
                found = step(patient(name, policy, told, **sizes), policy)
            assert len(told) == 1, (kind, place)
            assert_same_gradient(found, expected)


@pytest.mark.parametrize("name", ENGINES)
def test_several_updates_with_a_reference_survive_it_too(policy, name):
    several = {"keep_graph": False, "reference": True}
    with faults(policy) as places:
        expected = step(patient(name, policy), policy, **several)
    for place in (0, places["forward"] // 2, places["forward"] - 1):
        with faults(policy, forward={place}):
            assert_same_gradient(step(patient(name, policy), policy, **several), expected)
    assert all(parameter.requires_grad for parameter in policy.adapters().values())


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_every_way_of_saying_it_is_understood(policy, error):
    expected, told = step(patient("shared", policy), policy), []
    with faults(policy, forward={1}, backward={1}, error=error):
        assert_same_gradient(step(patient("shared", policy, told), policy), expected)
    assert [backoff.phase for backoff in told] == ["looking", "updating"]


@pytest.mark.parametrize("name", ENGINES)
def test_memory_can_run_out_twice_in_a_row_and_the_small_sizes_stay(policy, name):
    expected, told = step(patient(name, policy), policy), []
    engine = patient(name, policy, told)
    with faults(policy, backward={0, 1}):
        assert_same_gradient(step(engine, policy), expected)
    assert [backoff.sizes for backoff in told] == [
        {"memory.rows_per_micro_batch": (3, 1)},
        {"memory.logprob_chunk": (256, 128), "memory.focus_chunk": (256, 128)},
    ]
    assert_same_gradient(step(engine, policy), expected)
    assert engine.rows_at_once(GROUPS[1]) == 1


def test_gradients_of_other_groups_are_put_back_bit_by_bit(policy):
    engine = patient("shared", policy)
    first, second = GROUPS
    engine.update(engine.look(first, keep_graph=True, reference=False), advantages_of(first), PLAIN, denominator=49.0)
    before = {name: parameter.grad.clone() for name, parameter in policy.adapters().items()}
    look = engine.look(second, keep_graph=True, reference=False)
    with faults(policy, backward=set(range(100))), pytest.raises(HardwareError):
        engine.update(look, advantages_of(second), PLAIN, denominator=49.0)
    after = taken_gradients(policy)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("name", ENGINES)
def test_completions_that_are_decoded_again_in_smaller_parts_are_the_same(sampler, name):
    places = [7, 8, 9]
    with faults(sampler) as passes:
        expected = patient(name, sampler).sample(PROMPTS, SAMPLING, places=places)
    for place in (0, 4, passes["forward"] - 2):
        told, seen = [], []
        with faults(sampler, forward={place, place + 1}):
            found = patient(name, sampler, told).sample(PROMPTS, SAMPLING, places=places, on_step=seen.append)
        assert len(told) == 2
        assert seen[-1].done_tokens == seen[-1].limit_tokens == 3 * 5 * 9
        assert_same_completions(found, expected)


def assert_same_completions(found, expected):
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert left.prompt is right.prompt
        assert torch.equal(left.completion_ids, right.completion_ids)
        assert torch.equal(left.completion_mask, right.completion_mask)
        assert torch.equal(left.finished, right.finished)
        assert left.texts == right.texts
        torch.testing.assert_close(left.sampling_logprobs, right.sampling_logprobs, rtol=0, atol=1e-5)
        assert (left.decode_focus is None) == (right.decode_focus is None)
        if right.decode_focus is not None:
            torch.testing.assert_close(left.decode_focus, right.decode_focus, rtol=0, atol=1e-6)


@pytest.mark.parametrize("signal", ["attention", "similarity"])
def test_focus_is_read_from_every_part_of_a_group(sampler, signal):
    wanted = {"focus_signal": signal, "rows_per_micro_batch": 2}
    expected = patient("shared", sampler, **wanted).sample(PROMPTS, SAMPLING, places=[0, 1, 2])
    found = patient("shared", sampler, rows_per_decode=2, **wanted).sample(PROMPTS, SAMPLING, places=[0, 1, 2])
    assert [group.decode_focus is None for group in found] == [False, False, True]
    assert_same_completions(found, expected)


def test_decoding_keeps_its_sizes_for_groups_of_the_same_size(sampler):
    told = []
    engine = patient("shared", sampler, told)
    with faults(sampler, forward={0, 1}):
        engine.sample(PROMPTS, SAMPLING, places=[0, 1, 2])
    assert [backoff.sizes for backoff in told] == [
        {"memory.prompts_per_decode": (3, 1)},
        {"memory.rows_per_decode": (5, 2)},
    ]
    greedy = Sampling(num_generations=1, max_completion_length=3, temperature=0.0)
    for sampling, largest in ((SAMPLING, 2), (greedy, 3)):
        with rows_of(sampler) as rows:
            engine.sample(PROMPTS, sampling, places=[0, 1, 2])
        assert max(rows) == largest


@contextmanager
def rows_of(policy):
    """Rows of every forward through the middle layer."""
    rows = []
    layer = policy.family.layers(policy.model)[1]
    hook = layer.register_forward_pre_hook(lambda _layer, given: rows.append(given[0].shape[0]))
    yield rows
    hook.remove()


@pytest.mark.parametrize("phase", ["decoding", "looking", "updating"])
@pytest.mark.parametrize("name", ENGINES)
def test_at_the_smallest_size_the_run_ends_with_what_would_need_less(policy, name, phase):
    config = load_config(engine=name, num_generations=5, overrides=["memory.rows_per_micro_batch=4"])
    told = []
    engine = make_engine(policy, config, on_backoff=told.append)
    look = partial(engine.look, GROUPS[1], keep_graph=True, reference=False)
    work = {"decoding": partial(engine.sample, PROMPTS, SAMPLING, places=[0, 1, 2]), "looking": look}
    if phase == "updating":
        work[phase] = partial(engine.update, look(), advantages_of(GROUPS[1]), PLAIN, denominator=1.0)
    with faults(policy, forward=range(1000), backward=range(1000)), pytest.raises(HardwareError) as caught:
        work[phase]()
    assert caught.value.exit_code == 4
    assert f"out of memory while {phase}" in str(caught.value)
    assert "Tried to allocate 2.00 GiB" in str(caught.value)
    assert str(caught.value).count("--set ") == 3
    assert not any(parameter.grad is not None for parameter in policy.adapters().values())
    if phase == "decoding":
        assert told[-1].sizes == {"memory.rows_per_decode": (2, 1)}
    else:
        assert (told[0].sizes, told[0].overruled) == ({"memory.rows_per_micro_batch": (4, 2)}, OVERRULED)
        assert "although memory.rows_per_micro_batch was set by" in told[0].in_words()
        assert told[-1].sizes == {"memory.logprob_chunk": (32, 16), "memory.focus_chunk": (32, 16)}
    taken_gradients(policy)


OVERRULED = {"memory.rows_per_micro_batch": "--set memory.rows_per_micro_batch=4"}


def test_what_to_do_begins_with_what_the_plan_says_would_fit():
    config = load_config(model="qwen2-vl-2b")
    model, largest = preset_architectures()["qwen2-vl-2b"], PromptSize(text_tokens=200, images=(512,))
    job = Job(model=model, config=config, largest=largest, device="cuda", trains=True)
    told = advice(config, job)
    assert told.startswith("By the plan of memory each of these would fit: --set ")
    assert "num_generations" not in told
    assert len(set(re.findall(r"--(?:set|model) \S+", told))) == told.count("--set ") + told.count("--model ") >= 3
    for way in ways_out(job):
        smaller = re.fullmatch(r"--model (\S+)", way)
        if smaller:
            less = replace(job, model=preset_architectures()[smaller[1]])
        else:
            less = job.with_config(load_config(model="qwen2-vl-2b", overrides=way.split()[1::2]))
        assert memory_plan(less).peak_bytes < memory_plan(job).peak_bytes


def test_a_size_that_memory_has_room_for_is_found_and_nothing_smaller(policy):
    told = []
    engine = patient("batched", policy, told)
    longest = GROUPS[1].completion_ids.shape[1] + PROMPTS[0].input_ids.shape[0]
    with faults(policy, too_many=3 * longest):
        found = step(engine, policy)
    assert engine.settings.rows_per_micro_batch == 2
    assert_same_gradient(found, step(patient("batched", policy), policy))


def test_other_errors_pass_and_are_not_tried_again(policy):
    calls = []

    def broken():
        calls.append(1)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        attempted(broken)
    assert calls == [1]


@pytest.mark.parametrize("name", ENGINES)
def test_nothing_of_what_failed_is_kept_when_it_is_tried_again(policy, name):
    """All states of the failed work must be gone when the next forward begins, without a collection of cycles."""
    engine, kept, alive = patient(name, policy), [], []
    decoder = policy.family.language_model(policy.model)
    hooks = [
        decoder.register_forward_pre_hook(lambda *_: alive.append(sum(ref() is not None for ref in kept))),
        decoder.register_forward_hook(lambda _module, _given, output: kept.append(weakref.ref(output[0]))),
    ]
    gc.disable()
    try:
        look = engine.look(GROUPS[1], keep_graph=True, reference=False)
        with faults(policy, backward={0}):
            engine.update(look, advantages_of(GROUPS[1]), PLAIN, denominator=1.0)
    finally:
        gc.enable()
        for hook in hooks:
            hook.remove()
    taken_gradients(policy)
    assert alive[-1] == 0


def test_a_failure_that_its_own_frames_hold_is_let_go_of():
    held = []

    def work():
        states = torch.zeros(3)
        held.append(weakref.ref(states))
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError as error:
            kept = error  # a cycle: error, traceback, frame, error
            raise kept from None

    gc.disable()
    try:
        assert attempted(work) == Shortage("CUDA out of memory")
        assert held[0]() is None
    finally:
        gc.enable()


def test_the_ladder_of_sizes_ends():
    settings, seen = EngineSettings(recompute=False, logprob_chunk=40, focus_chunk=8), []
    rows = 5
    while (settings := smaller_parts(settings, rows)) is not None:
        rows = min(rows, settings.rows_per_micro_batch)
        seen.append((rows, settings.logprob_chunk, settings.focus_chunk, settings.recompute))
    assert seen == [(2, 40, 8, False), (1, 40, 8, False), (1, 20, 8, False), (1, 16, 8, False), (1, 16, 8, True)]
    assert smaller_parts(EngineSettings(), 1).rows_per_micro_batch == 1
    assert DecodeSizes(1, 1).smaller() is None
