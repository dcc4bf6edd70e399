"""Predicted memory against what the engine's own code allocates on tensors without content, at the models' true shapes.

    python benchmarks/memory.py                     five shapes, written to results/memory.json
    python benchmarks/memory.py --only qwen2-vl-2b  one model, printed alone

PyTorch's fake tensors have sizes and no content: the project's engine runs its real passes on them, and every storage
that comes to life is counted until it dies. Weights in NF4 are a stand-in layer that calls bitsandbytes' dequantization
shape by shape. Sampling is stood in for by drawing from the logits and keeping none of it; the loss by a weighted sum.
What runs inside one operation (a kernel's own workspace) is not seen.
"""

from __future__ import annotations

import argparse
import json
import weakref
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from bitsandbytes.nn import Linear4bit
from measured import claim, write_result
from torch import nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorConverter, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForImageTextToText

from vgpo_lite.config.load import load_config
from vgpo_lite.data_types import Prompt, RolloutGroup, Sampling
from vgpo_lite.engine import EngineSettings, rollout, shared
from vgpo_lite.engine.kernels import kernel_for
from vgpo_lite.engine.sampling import sampled_tokens
from vgpo_lite.models.attention import use_shared_attention
from vgpo_lite.models.checkpointing import allow_recomputation
from vgpo_lite.models.families import FAMILIES
from vgpo_lite.models.lora import adapter_snapshot, add_adapters
from vgpo_lite.models.policy import Policy
from vgpo_lite.planning import Job, PromptSize, memory_plan, preset_architectures, read_json
from vgpo_lite.planning.architecture import CONFIGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vgpo_lite.config.schema import RunConfig

HELD_OUT = ("qwen2.5-vl-3b", "qwen2.5-vl-7b")
"""Models that no formula was looked at with before it was final."""

WORK = {
    "groups of four": ("short", ["memory.rows_per_micro_batch=4", "max_completion_length=512"]),
    "long prompt, no checkpointing": ("long", ["gradient_checkpointing=false", "max_completion_length=256"]),
    "whole group at once": ("short", ["memory.rows_per_micro_batch=8", "max_completion_length=128"]),
}
SIZES = {"short": PromptSize(text_tokens=128, images=(512,)), "long": PromptSize(text_tokens=200, images=(1024,))}
CASES = (
    ("qwen2-vl-2b", "groups of four"),
    ("qwen2-vl-2b", "whole group at once"),
    ("qwen3-vl-4b", "groups of four"),
    ("qwen2.5-vl-3b", "groups of four"),
    ("qwen2.5-vl-7b", "long prompt, no checkpointing"),
)
"""Models and work whose comparison is written."""
NOT_MEASURED = ("optimizer", "pixels")
"""Parts of the plan that are left out here: the optimizer is not run, and pixels are tensors with content."""
PHASES = ("vision", "rollout", "score", "update")
TARGET = 0.10


class Storages(TorchDispatchMode):
    """Counts the bytes of storages that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._seen: dict[int, weakref.ref] = {}

    def note(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage once, until it dies; tensors with content are the caller's bookkeeping."""
        if not isinstance(tensor, fake_tensor.FakeTensor):
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def gone(_: object, key: int = key, size: int = size) -> None:
            self.held -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.held += size
        self.peak = max(self.peak, self.held)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.note(leaf)
        return result

    @contextmanager
    def measuring(self) -> Iterator[dict[str, int]]:
        """The most that was alive while the body ran, under `bytes`."""
        self.peak, found = self.held, {}
        yield found
        found["bytes"] = self.peak


class _Dequantized(torch.autograd.Function):
    """bitsandbytes' way for large inputs: dequantize, multiply, forget; and again in the backward pass."""

    @staticmethod
    def forward(ctx, inputs, packed, bias, state):
        ctx.packed, ctx.state = packed, state
        return nn.functional.linear(inputs, dequantize_4bit(packed, state), bias)

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient @ dequantize_4bit(ctx.packed, ctx.state), None, None, None


class StandIn(Linear4bit):
    """A 4-bit layer without content: packed weights, scales, scales of scales and tables, as bitsandbytes has them."""

    def __init__(self, plain: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.bias, self.compute_dtype = plain.bias, plain.weight.dtype
        count = plain.weight.numel()
        blocks = -(-count // 64)
        nested = QuantState(
            absmax=torch.empty(-(-blocks // 256)), code=torch.empty(256), blocksize=256, dtype=torch.float32
        )
        self._state = QuantState(
            absmax=torch.empty(blocks, dtype=torch.uint8),
            shape=plain.weight.shape,
            code=torch.empty(16),
            blocksize=64,
            quant_type="nf4",
            dtype=plain.weight.dtype,
            offset=torch.empty(()),
            state2=nested,
        )
        self.weight = nn.Parameter(torch.empty(-(-count // 2), 1, dtype=torch.uint8), requires_grad=False)
        self.weight.compress_statistics, self.weight.quant_type = True, "nf4"  # pyright: ignore  (PEFT asks for them)

    def forward(self, inputs):
        return _Dequantized.apply(inputs, self.weight, self.bias, self._state)


@dataclass(frozen=True)
class Shaped:
    """A model without content, ready for the engine."""

    policy: Policy
    mode: FakeTensorMode


def shaped_policy(preset: str, config: RunConfig) -> Shaped:
    """The model of a preset at its true shape: NF4 stand-ins in the language model, bfloat16 elsewhere, adapters."""
    settings = AutoConfig.for_model(**dict(read_json(CONFIGS / f"{preset}.json")))
    family = FAMILIES[settings.model_type]
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        model = AutoModelForImageTextToText.from_config(settings, dtype=torch.bfloat16)
        model.requires_grad_(False)
        for layer in family.layers(model):
            for name, module in list(layer.named_modules()):
                if isinstance(module, nn.Linear):
                    parent, _, last = name.rpartition(".")
                    setattr(layer.get_submodule(parent), last, StandIn(module))
        model.is_loaded_in_4bit = True
        files: Any = SimpleNamespace(model_id=preset, revision=None)
        with patch.object(nn.Module, "to", lambda module, *_, **__: module):  # would swap tensors, which are fake
            adapted = add_adapters(model, files, family, config.lora, seed=0)
    adapted.train()
    policy = Policy(
        model=adapted,
        family=family,
        processor=SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda *_, **__: "")),
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
        quantization="nf4",
        eos_ids=(0,),
        pad_id=0,
        suppressed_ids=(1,),
        model_id=preset,
        revision=None,
    )
    return Shaped(policy, mode)


def shaped_prompt(size: PromptSize, preset: str) -> Prompt:
    """A prompt of that size whose image is as square as whole tokens allow."""
    vision, tokens = preset_architectures()[preset].vision, size.image_tokens
    high = next(side for side in range(int(tokens**0.5), 0, -1) if tokens % side == 0)
    grid = torch.tensor([[1, high * vision.merge, tokens // high * vision.merge]])
    ids = torch.full((size.tokens,), 7)
    mask = torch.zeros(size.tokens, dtype=torch.bool)
    mask[4 : 4 + tokens] = True
    ids[mask] = 151_655
    pixels = torch.zeros(tokens * vision.merge**2, vision.patch_numbers)
    return Prompt(
        sample=SimpleNamespace(sample_id="shape"),  # pyright: ignore[reportArgumentType]
        text="",
        input_ids=ids,
        image_mask=mask,
        vision={"pixel_values": pixels, "image_grid_thw": grid},
    )


class _Drawn:
    """Stands in for `Completions`: draws from the logits as it does, and lets every row go on."""

    def __init__(self, policy: Policy, prompts: list[Prompt], places: object, sampling: Sampling) -> None:
        self._sampling = sampling
        self.focus = _Ignored()

    def draw(self, token, logits, rows, alive):
        sampled_tokens(logits, torch.zeros(logits.shape[0]), torch.tensor([1]), self._sampling)
        return torch.zeros(logits.shape[0], dtype=torch.long), torch.ones(logits.shape[0], dtype=torch.bool)


class _Ignored:
    def __setitem__(self, place: object, value: object) -> None:
        pass


class _WeightedSum:
    """Stands in for `GroupLoss`, whose metrics are read as numbers."""

    def __init__(self, *_: object) -> None:
        pass

    def backward(self, logprobs: torch.Tensor, rows: slice = slice(None)) -> dict[str, tuple[float, float]]:
        """Go backward from every log-probability."""
        logprobs.sum().backward()
        return {}


def measured_phases(preset: str, config: RunConfig, size: PromptSize) -> dict[str, int]:
    """Peak bytes of each phase, weights and adapters included, the optimizer's states left out."""
    kernel_for(torch.empty(1, 1, 1, 128, dtype=torch.bfloat16))  # tried on tensors with content, once
    shaped = shaped_policy(preset, config)
    policy, found = shaped.policy, {}
    storages = Storages()
    for tensor in _tensors_of(policy.model):
        storages.note(tensor)
    snapshot = adapter_snapshot(policy)
    for tensor in snapshot.values():
        storages.note(tensor)
    step = config.prompts_per_step
    prompts = [shaped_prompt(size, preset) for _ in range(step)]
    sampling = config.sampling
    with ExitStack() as stack:
        stack.enter_context(_constants())
        stack.enter_context(storages)
        use_shared_attention(policy.family.bare(policy.model))
        allow_recomputation(policy.family.language_model(policy.model))
        engine = shared.SharedEngine(policy, EngineSettings.of(config))
        with storages.measuring() as vision:
            engine._features.of(prompts[0])
        found["vision"] = vision["bytes"]
        found["rollout"] = _rollout_peak(storages, engine, policy, prompts, sampling)
        group = shaped_group(prompts[0], sampling)
        with storages.measuring() as score:
            engine.look(group, keep_graph=False, reference=False)
        found["score"] = score["bytes"]
        for adapter in policy.adapters().values():  # a step's other groups have left theirs
            adapter.grad = torch.zeros_like(adapter)
        with patch.object(shared, "GroupLoss", _WeightedSum), storages.measuring() as update:
            look = engine.look(group, keep_graph=True, reference=False)
            engine.update(look, torch.zeros(()), None, 1.0)
        found["update"] = update["bytes"]
    return found


def _rollout_peak(storages: Storages, engine: Any, policy: Policy, prompts: list[Prompt], sampling: Sampling) -> int:
    """Prompts, the step at which keys and values get their last room, and the last step; those between hold less."""
    plan = rollout.DecodePlan(focus_signal="attention", features=engine._features.of)
    limit = sampling.max_completion_length
    with patch.object(rollout, "Completions", _Drawn), torch.no_grad(), storages.measuring() as found:
        batch = rollout._Batch(policy, prompts, range(len(prompts)), sampling, plan)
        with patch.object(rollout.GroupCache, "advance", lambda cache: None):
            cache = batch._cache
            with patch("vgpo_lite.engine.decode.FIRST_ROOM", limit // 2):
                ids = batch._draw(0)
                batch._feed(0, ids)  # makes the room there is before the last doubling
            cache.tokens = limit // 2
            batch._logits = batch._lm_head(batch._feed(limit // 2, batch._draw(1)))
            cache.tokens = limit - 1
            batch._logits = batch._lm_head(batch._feed(limit - 1, batch._draw(2)))
            batch._draw(3)
    return found["bytes"]


def shaped_group(prompt: Prompt, sampling: Sampling) -> RolloutGroup:
    """A group whose completions are all at their limit."""
    shape = sampling.num_generations, sampling.max_completion_length
    return RolloutGroup(
        prompt=prompt,
        completion_ids=torch.full(shape, 7),
        completion_mask=torch.ones(shape, dtype=torch.bool),
        sampling_logprobs=torch.zeros(shape),
        decode_focus=torch.zeros(shape),
        finished=torch.ones(shape[0], dtype=torch.bool),
        texts=("",) * shape[0],
    )


@contextmanager
def _constants() -> Iterator[None]:
    """Masks and positions keep their content when they meet tensors without any: places can then be counted."""
    original: Callable = FakeTensorConverter.from_real_tensor

    def from_real_tensor(self, mode, tensor, make_constant=False, **kwargs):
        small = tensor.numel() < 1_000_000 and tensor.dtype in (torch.bool, torch.long)
        return original(self, mode, tensor, make_constant=make_constant or small, **kwargs)

    with (
        patch.object(FakeTensorConverter, "from_real_tensor", from_real_tensor),
        patch.object(fake_tensor, "CONSTANT_NUMEL_LIMIT", 1_000_000),
    ):
        yield


def _tensors_of(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        if isinstance(module, StandIn):
            state = module._state
            yield from (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)


def predicted_phases(preset: str, config: RunConfig, size: PromptSize) -> dict[str, dict[str, int]]:
    """The plan's parts, the optimizer's states left out."""
    job = Job(model=preset_architectures()[preset], config=config, largest=size, device="cpu")
    plan = memory_plan(job)
    return {
        phase.name: {part: held for part, held in phase.parts.items() if part not in NOT_MEASURED}
        for phase in plan.phases
    }


def compared(preset: str, work: str) -> list[dict[str, object]]:
    """Each phase of one shape, predicted and measured."""
    size, settings = SIZES[WORK[work][0]], WORK[work][1]
    config = load_config(
        model=preset,
        overrides=[
            "dtype=bfloat16",
            "max_resamples=0",
            "data.max_pixels=2000000",
            "memory.decode_graph=false",  # tensors without content cannot be captured
            *settings,
        ],
    )
    measured, predicted = measured_phases(preset, config, size), predicted_phases(preset, config, size)
    rows = []
    for phase in PHASES:
        parts = predicted[phase]
        held = parts["weights"] + parts["adapters"]
        total = sum(parts.values())
        rows.append(
            {
                "model": preset,
                "work": work,
                "phase": phase,
                "predicted_bytes": total,
                "measured_bytes": measured[phase],
                "error": total / measured[phase] - 1,
                "error_beyond_weights": (total - held) / (measured[phase] - held) - 1,
                "parts": parts,
            }
        )
    return rows


def main() -> None:
    """Compare and write."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", nargs="*", default=[], help="models, printed and not written")
    options.add_argument("--work", nargs="*", default=list(WORK), help=f"of {', '.join(WORK)}")
    chosen = options.parse_args()
    rows: list[dict[str, Any]] = []
    for preset, work in [(preset, work) for preset in chosen.only for work in chosen.work] or CASES:
        rows += compared(preset, work)
        for row in rows[-len(PHASES) :]:
            shown = {part: round(size / 1e6) for part, size in row["parts"].items()}
            print(
                f"{preset} | {work} | {row['phase']}: {row['predicted_bytes'] / 1e6:.0f} MB predicted, "
                f"{row['measured_bytes'] / 1e6:.0f} measured, {row['error']:+.1%}, "
                f"beyond weights {row['error_beyond_weights']:+.1%} {json.dumps(shown)}",
                flush=True,
            )
    if not chosen.only:
        write(rows)


def _measured(row: dict[str, Any]) -> int:
    return row["measured_bytes"]


def write(rows: list[dict[str, Any]]) -> None:
    """The result, with the largest error of all shapes, of those held out, and of each run's peak."""
    worst = {
        name: max(abs(row["error"]) for row in rows if names is None or row["model"] in names)
        for name, names in (("all shapes", None), ("held-out shapes", HELD_OUT))
    }
    claims = [claim(f"largest error, {name}", value, "<=", TARGET, "share") for name, value in worst.items()]
    claims.append(claim("largest underestimate, all shapes", max(-row["error"] for row in rows), "<=", 0.03, "share"))
    peaks = [max(rows[start : start + len(PHASES)], key=_measured) for start in range(0, len(rows), len(PHASES))]
    beyond = max(abs(row["error_beyond_weights"]) for row in peaks)
    claims.append(claim("largest error of a run's peak, weights and adapters apart", beyond, "<=", TARGET, "share"))
    table = {
        "columns": ["model", "work", "phase", "predicted", "measured on fake tensors", "error", "beyond weights"],
        "rows": [
            [
                row["model"],
                row["work"],
                row["phase"],
                f"{row['predicted_bytes'] / 1e9:.2f} GB",
                f"{row['measured_bytes'] / 1e9:.2f} GB",
                f"{row['error']:+.1%}",
                f"{row['error_beyond_weights']:+.1%}",
            ]
            for row in rows
        ],
    }
    write_result(
        "memory",
        measurements={"table": table, "rows": rows, "held_out": list(HELD_OUT)},
        claims=claims,
        packages=("torch", "transformers", "peft", "bitsandbytes"),
        gpu="none",
    )


if __name__ == "__main__":
    main()
