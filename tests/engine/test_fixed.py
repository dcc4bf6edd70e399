"""Steps of decoding at fixed addresses: the same completions, whether they are run, captured, or cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engine.test_backoff import patient
from tests.engine.test_rollout import MANY_ENDS, PROMPTS, SAMPLING, assert_same, make_policy, prompts_of
from tests.small_models import MODEL_TYPES
from vgpo_lite.config.load import load_config
from vgpo_lite.engine import rollout
from vgpo_lite.engine.backoff import GraphError
from vgpo_lite.engine.fixed import FixedStep, captured_graph
from vgpo_lite.engine.protocol import EngineSettings
from vgpo_lite.engine.rollout import DecodePlan, sample_groups

FIXED = DecodePlan(fixed=True)
GREEDY = replace(SAMPLING, temperature=0.0)
NEEDS_THE_CPU = {
    "aten._local_scalar_dense",
    "aten.equal",
    "aten.is_nonzero",
    "aten.lift_fresh",
    "aten.masked_select",
    "aten.nonzero",
}
"""Operations that wait for a GPU or bring it something: what no graph can hold."""


@pytest.fixture(autouse=True)
def little_room(monkeypatch):
    """Room for three tokens, then 6, 12 and all 20."""
    monkeypatch.setattr("vgpo_lite.engine.decode.FIRST_ROOM", 3)


class Recorder:
    """Stands in for capturing: what it hands out runs the function again and leaves the result where it first was.

    As in a graph, a number that Python has read stays what it was: the cache's count of tokens is put back meanwhile.
    """

    def __init__(self, fails=None):
        self.fails = fails
        self.captures = self.replays = 0

    def __call__(self, run):
        if self.fails is not None:
            raise GraphError(self.fails)
        self.captures += 1
        cache = run.__self__._cache
        captured_at, states = cache.tokens, run()

        def replay():
            self.replays += 1
            now, cache.tokens = cache.tokens, captured_at
            try:
                return states.copy_(run())
            finally:
                cache.tokens = now

        return replay


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    capturing(monkeypatch, recorder)
    return recorder


def capturing(monkeypatch, capture):
    monkeypatch.setattr(rollout, "FixedStep", lambda forward, cache, _: FixedStep(forward, cache, capture))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("signal", ["attention", "similarity"])
@pytest.mark.parametrize("sampling", [SAMPLING, GREEDY], ids=["sampled", "greedy"])
def test_fixed_steps_give_the_same_completions_values_and_focus(model_type, signal, sampling):
    policy, prompts = make_policy(model_type, eos_ids=MANY_ENDS), prompts_of(model_type)
    expected = sample_groups(policy, prompts, sampling, places=range(4), plan=DecodePlan(focus_signal=signal))
    found = sample_groups(policy, prompts, sampling, places=range(4), plan=replace(FIXED, focus_signal=signal))
    assert_same(found, expected)
    for ours, theirs in zip(found, expected, strict=True):
        if theirs.decode_focus is not None:
            torch.testing.assert_close(ours.decode_focus, theirs.decode_focus, atol=1e-6, rtol=0)


@pytest.mark.parametrize("model_type", ["qwen2_vl", "gemma3"])
@pytest.mark.parametrize("eos_ids", [(), MANY_ENDS], ids=["to the limit", "rows that end early"])
def test_what_is_replayed_reads_and_writes_the_same_places(monkeypatch, recorder, eos_ids, model_type):
    policy, prompts = make_policy(model_type, eos_ids=eos_ids), prompts_of(model_type)
    expected = sample_groups(policy, prompts, SAMPLING, places=range(4))
    seen: list[tuple[int, ...]] = []
    forward = rollout._Batch._forward

    def watched(batch, ids, positions):
        states = forward(batch, ids, positions)
        held = (ids, positions, batch._cache.attention, batch._cache._place, batch._cache._unused, *batch._cache._own)
        seen.append((batch._cache.moves, *(tensor.data_ptr() for tensor in held)))
        return states

    monkeypatch.setattr(rollout._Batch, "_forward", watched)
    assert_same(sample_groups(policy, prompts, SAMPLING, places=range(4), plan=FIXED), expected)
    moves = sorted({moved for moved, *_ in seen})
    assert len(set(seen)) == len(moves)  # one set of addresses until they move
    steps = [sum(own == moved for own, *_ in seen) for moved in moves]
    # a captured step is run three times here: as it is, while captured, and at its first replay
    assert recorder.captures == sum(count > 1 for count in steps)
    assert recorder.replays == sum(count - 2 for count in steps if count > 1)
    if not eos_ids:  # room of 3, 6, 12 and 20 tokens, nineteen of which are fed
        assert [moved - moves[0] for moved in moves] == [0, 1, 2, 3]
        assert recorder.captures == 4


@pytest.mark.parametrize("model_type", ["qwen2_vl", "gemma3"])
def test_a_step_asks_nothing_of_the_cpu(monkeypatch, model_type):
    policy, prompts, called = make_policy(model_type, quantized=True), prompts_of(model_type), set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.add(str(func.overloadpacket))
            return func(*args, **(kwargs or {}))

    def capture(run):
        def watched():
            with Watch():
                return run()

        return watched

    capturing(monkeypatch, capture)
    sample_groups(policy, prompts[:2], SAMPLING, places=range(2), plan=replace(FIXED, focus_signal="attention"))
    assert "aten.index_copy_" in called
    assert not called & NEEDS_THE_CPU


def test_where_no_step_can_be_captured_decoding_goes_on_without_and_says_so(monkeypatch):
    policy, told = make_policy(), []
    expected = sample_groups(policy, PROMPTS, SAMPLING, places=range(4))
    capturing(monkeypatch, Recorder(fails="operation not permitted when stream is capturing"))
    engine = patient("shared", policy, told, decode_graph=True)
    assert_same(engine.sample(PROMPTS, SAMPLING, places=range(4)), expected)
    assert [backoff.in_words() for backoff in told] == [
        "a step cannot be captured as a CUDA graph while decoding: memory.decode_graph is False instead of True from "
        "here on"
    ]
    assert told[0].event == "no_graph"
    assert told[0].reason == "operation not permitted when stream is capturing"
    assert not engine.settings.decode_graph
    resumed = patient("shared", policy, decode_graph=True)
    assert resumed.restore_sizes(engine.shrunk_sizes()) == ("memory.decode_graph is False",)
    assert not resumed.settings.decode_graph


def test_memory_that_runs_out_while_capturing_shrinks_what_decodes_together(monkeypatch):
    policy, told, recorder = make_policy(), [], Recorder()
    expected = sample_groups(policy, PROMPTS, SAMPLING, places=range(4))

    def full_once(run):
        if not told:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return recorder(run)

    capturing(monkeypatch, full_once)
    engine = patient("shared", policy, told, decode_graph=True)
    assert_same(engine.sample(PROMPTS, SAMPLING, places=range(4)), expected)
    assert [backoff.sizes for backoff in told] == [{"memory.prompts_per_decode": (4, 2)}]
    assert recorder.replays > 0


@pytest.mark.parametrize(
    ("overrides", "on_gpu", "on_cpu"),
    [
        ([], True, False),
        (["memory.decode_graph=true"], True, True),
        (["memory.decode_graph=false"], False, False),
        (["engine=batched"], False, False),
    ],
)
def test_graphs_are_for_gpus_unless_told_otherwise(overrides, on_gpu, on_cpu):
    config = load_config(overrides=overrides)
    assert EngineSettings.of(config, device="cuda").decode_graph is on_gpu
    assert EngineSettings.of(config, device="cpu").decode_graph is on_cpu


@pytest.mark.gpu
@pytest.mark.parametrize("quantized", [False, True])
def test_a_graph_gives_the_completions_of_steps_that_are_run_one_by_one(monkeypatch, quantized):
    policy = make_policy(eos_ids=MANY_ENDS, quantized=quantized)
    policy = replace(policy, model=policy.model.to("cuda"), device=torch.device("cuda"))
    plan = DecodePlan(focus_signal="attention")
    expected = sample_groups(policy, PROMPTS, GREEDY, places=range(4), plan=plan)
    captures = []

    def capture(run):
        captures.append(run)
        return captured_graph(run)

    capturing(monkeypatch, capture)
    found = sample_groups(policy, PROMPTS, GREEDY, places=range(4), plan=replace(plan, fixed=True))
    assert captures
    assert_same(found, expected, tolerance=1e-4)


@pytest.mark.gpu
def test_what_a_graph_cannot_hold_is_said():
    with pytest.raises(GraphError):
        captured_graph(lambda: torch.ones(2, device="cuda") * torch.ones(2, device="cuda").sum().item())
