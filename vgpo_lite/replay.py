"""One recorded step taken anew: its loss and its gradient, without sampling and without moving the adapter.

The journal holds the rollouts and the adapter as the step found them; the images come from the data set, and are
compared with those of the run. The step then goes through `trainer.learn`, as it did in the run.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError

from vgpo_lite.algorithm.advantages import group_advantages
from vgpo_lite.checkpoint import generator_states, restore_generators
from vgpo_lite.config.load import with_overrides
from vgpo_lite.config.schema import RunConfig
from vgpo_lite.config.settings import settings
from vgpo_lite.config.writing import flat_values
from vgpo_lite.datasets import open_rows
from vgpo_lite.engine import Look, make_engine
from vgpo_lite.engine.optimizer import unscaled_norm
from vgpo_lite.errors import CheckpointError, ConfigError, DataError
from vgpo_lite.journal import image_hash, read_adapter, read_page
from vgpo_lite.listening import SilentListener
from vgpo_lite.metrics import Tally
from vgpo_lite.models.lora import load_adapter_state
from vgpo_lite.preparation import loaded_policy
from vgpo_lite.prompts import encode_prompt
from vgpo_lite.trainer import learn
from vgpo_lite.windows import restored_window

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from vgpo_lite.data_types import Prompt, Sample
    from vgpo_lite.engine import Engine
    from vgpo_lite.journal import Page
    from vgpo_lite.listening import Listener
    from vgpo_lite.models import Policy
    from vgpo_lite.windows import ScoredGroup, Window

_WEIGHING = ("advantage", "loss", "scale_rewards", "clip_low", "clip_high", "kl_coefficient")
_WORKING = ("engine", "backend", "quantization", "dtype", "device", "gradient_checkpointing", "trust_remote_code")
REPLAYABLE = (*_WEIGHING, *_WORKING, *(key for key in settings() if key.partition(".")[0] in ("focus", "memory")))
"""Settings that a replay may change: what is made of recorded rollouts, and on what it is computed."""


@dataclass(frozen=True, kw_only=True)
class StepNumbers:
    """What came of a step.

    Attributes:
        loss: The policy loss, `policy/loss`; nan where it was not finite.
        grad_norm: Euclidean norm of the adapters' gradient before clipping, `policy/grad_norm`.
    """

    loss: float
    grad_norm: float


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A recorded step and the same step taken anew.

    Attributes:
        step: The optimizer step.
        groups: Groups it trained on.
        tokens: Completion tokens it trained on.
        changed: Settings that were changed, with the recorded value and the one of the replay.
        recorded: What the run recorded.
        replayed: What came of it now.
    """

    step: int
    groups: int
    tokens: int
    changed: Mapping[str, tuple[object, object]]
    recorded: StepNumbers
    replayed: StepNumbers


def replay_step(run: Path, step: int, *, overrides: Sequence[str] = (), listener: Listener | None = None) -> Replay:
    """Take a recorded step of a run anew, with its own settings or with some of them changed.

    Args:
        run: The run directory.
        step: The optimizer step, from 1.
        overrides: Settings to change, as `--set` takes them; those in `REPLAYABLE`.
        listener: Told what is going on; None: nobody.

    Raises:
        ConfigError: The journal does not hold the step, or a setting cannot be changed any more.
        CheckpointError: The step trained on nothing, or its files are damaged or not kept any more.
        DataError: The rows it trained on are not what they were.
        VgpoLiteError: The model or the machine cannot be used; the class tells which.
    """
    listener = SilentListener() if listener is None else listener
    page = read_page(run, step)
    config, changed = _settings_of(page, overrides)
    if page.entry.groups == 0:
        raise CheckpointError(
            f"step {step} of {run} trained on no group, since in none did one completion earn more than another: "
            "there is nothing to replay."
        )
    adapter = read_adapter(run, page.entry)
    samples = _samples(page, config)
    listener.noted(f"loading {config.model}")
    policy = loaded_policy(config)
    load_adapter_state(policy, adapter)
    engine = make_engine(policy, config)
    with _generators_at(page.generators):
        window = _seen_anew(_window(page, samples, config, policy), engine, config, changed)
        tally = Tally()
        for index in range(len(window.useful)):
            listener.progressed("replay", index, len(window.useful))
            look = Look(group=window.useful[index].group, signals=window.signals[index])
            _, counts = learn(engine, window, index, look, config=config, loss_scale=page.loss_scale)
            tally.add(counts)
    gradients = [parameter.grad for parameter in policy.adapters().values() if parameter.grad is not None]
    grad_norm = float(unscaled_norm(gradients, loss_scale=page.loss_scale)) if gradients else 0.0
    return Replay(
        step=step,
        groups=page.entry.groups,
        tokens=page.entry.tokens,
        changed=changed,
        recorded=StepNumbers(loss=page.loss, grad_norm=page.grad_norm),
        replayed=StepNumbers(loss=tally.means()["policy/loss"], grad_norm=grad_norm),
    )


def _settings_of(page: Page, overrides: Sequence[str]) -> tuple[RunConfig, dict[str, tuple[object, object]]]:
    """The settings to replay with, and what of them differs from the recorded ones."""
    try:
        recorded = RunConfig.model_validate(page.about["settings"] | {"trust_remote_code": False})  # only when typed
    except ValidationError as error:
        raise CheckpointError(f"the settings in the journal are not those of this version: {error}") from error
    config = with_overrides(recorded, overrides)
    before, after = flat_values(recorded), flat_values(config)
    changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    refused = [f"{key} ({before[key]} in the run)" for key in changed if key not in REPLAYABLE]
    if refused:
        raise ConfigError(
            f"a replay takes the rollouts and the model as they are recorded, so it cannot change "
            f"{', '.join(refused)}; it can change {', '.join(_WEIGHING)}, focus.*, {', '.join(_WORKING)} and memory.*."
        )
    # the adapter is the journal's, whatever the run began with, and the model's commit the recorded one
    return config.model_copy(update={"adapter": None, "revision": page.about["commit"] or config.revision}), changed


def _samples(page: Page, config: RunConfig) -> list[Sample]:
    """The rows that the step trained on, read from the data set."""
    train = open_rows(config).train
    places = {outline.sample_id: index for index, outline in enumerate(train.outlines())}
    gone = [name for name in page.sample_ids if name not in places]
    if gone:
        raise DataError(f"the data set has changed since step {page.entry.step}: it holds no usable {', '.join(gone)}.")
    return [train[places[name]] for name in page.sample_ids]


def _window(page: Page, samples: Sequence[Sample], config: RunConfig, policy: Policy) -> Window:
    """The window as the step found it, every prompt compared with the recorded one."""
    prompts = [encode_prompt(sample, policy.processor, config.data) for sample in samples]
    for prompt, ids, images in zip(prompts, page.prompt_ids, page.images, strict=True):
        _refuse_another_prompt(prompt, ids, images, page.entry.step)
    in_order = iter(prompts)
    return restored_window(page.window, prompt_at=lambda _: next(in_order), text_of=policy.text_of)


def _refuse_another_prompt(prompt: Prompt, ids: Tensor, images: str, step: int) -> None:
    what = "text" if not torch.equal(prompt.input_ids, ids) else "images" if image_hash(prompt) != images else None
    if what is not None:
        raise DataError(
            f"the {what} of {prompt.sample.sample_id} {'is' if what == 'text' else 'are'} not what step {step} saw "
            f"(prompt of {len(prompt.input_ids)} tokens, recorded {len(ids)}): restore the data set of the run."
        )


def _seen_anew(window: Window, engine: Engine, config: RunConfig, changed: Mapping[str, object]) -> Window:
    """The window with whatever changed settings need to know of it beside what is recorded."""
    useful = [_scaled_anew(scored, config) if "scale_rewards" in changed else scored for scored in window.useful]
    signals = []
    for scored, seen in zip(useful, window.signals, strict=True):
        unread = config.uses_focus and seen.focus is None and scored.group.prompt.has_image
        wants_focus = unread or "focus.signal" in changed
        wants_reference = config.uses_reference and seen.ref_logprobs is None
        if wants_focus and window.updates > 0:
            raise ConfigError(
                f"focus.signal cannot be changed for this step: its focus was read {window.updates} updates before, "
                "with another adapter. Replay the first step on the same rollouts."
            )
        if wants_focus or wants_reference:
            now = engine.look(scored.group, keep_graph=False, reference=wants_reference).signals
            seen = replace(
                seen,
                focus=now.focus if wants_focus else seen.focus,
                ref_logprobs=now.ref_logprobs if wants_reference else seen.ref_logprobs,
            )
        signals.append(seen)
    return replace(window, useful=useful, signals=signals)


def _scaled_anew(scored: ScoredGroup, config: RunConfig) -> ScoredGroup:
    if len(scored.group.texts) < config.num_generations:
        raise ConfigError(
            "scale_rewards cannot be changed for this step: completions cut at the limit were left out of it, and "
            "their rewards are not recorded."
        )
    return replace(scored, advantages=group_advantages(scored.rewards.rewards, scale=config.scale_rewards))


@contextlib.contextmanager
def _generators_at(states: Mapping[str, Tensor]) -> Iterator[None]:
    """The process-wide generators where the step found them; afterwards they are back where they were."""
    own = generator_states()
    restore_generators(states)
    try:
        yield
    finally:
        restore_generators(own)
