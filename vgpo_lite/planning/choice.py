"""Values for settings that are `auto`, so that a run fits; and what would fit where nothing does.

A written value is never changed, nor is `num_generations`. What is given up comes in the order of what it costs: time
first, the detail of images last.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vgpo_lite.errors import HardwareError
from vgpo_lite.planning.architecture import check_format, is_beyond, preset_architectures
from vgpo_lite.planning.prediction import memory_plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.listening import MemoryPlan
    from vgpo_lite.planning.job import Job

SMALLEST_CHUNK = 32
"""Tokens per chunk, below which a matrix product is no faster for being smaller."""
SMALLEST_BUDGET = 50_176
"""Pixels: 64 image tokens of 28 x 28."""
SUGGESTIONS = 5
"""Ways out that a refusal names at most."""

CHOSEN = "chosen by the planner"
"""Where a configuration says that such a value comes from."""
SHORTFALL = 0.1
"""Of what is no weight: how much less must be needed where a device ran out of memory, against the plan, at the
smallest sizes: predictions are held to a tenth of what is measured."""

PRICES: Mapping[str, str] = {
    "memory.rows_per_micro_batch": "updates read the weights more often",
    "memory.prompts_per_decode": "fewer groups decode together, which takes longer",
    "memory.rows_per_decode": "a group decodes in parts, which takes longer",
    "memory.logprob_chunk": "hardly any time",
    "memory.focus_chunk": "hardly any time",
    "data.max_pixels": "images lose detail",
    "decode_weights": "decodes without dequantizing, takes the memory of the copy",
}
"""What each choice costs."""

Change = tuple[str, object]


def fitted(job: Job, *, limit_bytes: int | None) -> tuple[RunConfig, MemoryPlan]:
    """The job's settings with what is `auto` chosen so that it fits, and its plan.

    Args:
        job: The run.
        limit_bytes: What it may use; None: anything fits.

    Raises:
        HardwareError: Nothing that is `auto` makes it fit; the message names settings that would. Or the model cannot
            be computed with in the format that is asked for.
    """
    check_format(job.model.model_type, job.config.dtype, job.config.model)
    fit, plan = _shrunk(job, limit_bytes)
    if not plan.fits:
        raise HardwareError(_refusal(job, plan))
    return _with_room_used(fit, plan)


def _with_room_used(job: Job, plan: MemoryPlan) -> tuple[RunConfig, MemoryPlan]:
    """The settings that fit, with a copy that samples where that is `auto`, speeds anything up, and still fits."""
    config = job.config
    dequantizes = job.device == "cuda" and config.quantization == "nf4" and config.backend == "transformers"
    if config.decode_weights != "auto" or not dequantizes or plan.limit_bytes is None:
        return config, plan
    config = changed(config, [("decode_weights", "copy")])
    roomy = memory_plan(job.with_config(config), limit_bytes=plan.limit_bytes)
    if not roomy.fits:
        return job.config, plan
    return config, replace(roomy, choices=(*plan.choices, _in_words_of_choice("decode_weights", "copy")))


def would_fit(job: Job, limit_bytes: int) -> list[str]:
    """Settings with which a job would fit, each as words for the command line; the first change least."""
    found = []
    for changes in _single_changes(job):
        fitting = next((change for change in changes if _fits(job, [change], limit_bytes)), None)
        if fitting is not None:
            found.append(_as_words([fitting]))
    if not found:
        together = _joined_changes(job, limit_bytes)
        found += [_as_words(together)] if together else []
    return found[:SUGGESTIONS] + [f"--model {name}" for name in _smaller_models(job, limit_bytes)]


def _smaller_models(job: Job, limit_bytes: int) -> list[str]:
    """The two largest presets that are smaller and fit; of the job's own family, if it has one, the largest as well."""
    presets = sorted(preset_architectures().items(), key=lambda preset: preset[1].parameters)
    fitting = [
        name
        for name, model in presets
        if model.parameters < job.model.parameters and _fits(replace(job, model=model), [], limit_bytes)
    ]
    related = [name for name in fitting if preset_architectures()[name].model_type == job.model.model_type][-1:]
    others = [name for name in fitting if name not in related]
    return [*others[len(related) - 2 :], *related]


def ways_out(job: Job) -> list[str]:
    """What would fit, as `would_fit` words it, where one completion at a time did not, whatever the plan had said."""
    sizes: list[Change] = [
        ("decode_weights", "quantized"),
        ("memory.prompts_per_decode", 1),
        ("memory.rows_per_decode", 1),
        ("memory.rows_per_micro_batch", 1),
        ("memory.logprob_chunk", SMALLEST_CHUNK),
        ("memory.focus_chunk", SMALLEST_CHUNK),
    ]
    smallest = job.with_config(changed(job.config, sizes))
    plan = memory_plan(smallest)
    limit = plan.needed_bytes - int(SHORTFALL * (plan.needed_bytes - plan.worst.parts["weights"]))
    return [way for way in would_fit(smallest, limit) if "num_generations" not in way]


def _shrunk(job: Job, limit_bytes: int | None) -> tuple[Job, MemoryPlan]:
    """Shrink what is `auto` until the job fits or nothing is left to shrink."""
    chosen: dict[str, object] = {}
    plan = memory_plan(job, limit_bytes=limit_bytes)
    while not plan.fits:
        smaller = (
            (change, candidate, memory_plan(candidate, limit_bytes=limit_bytes))
            for change in _remedies(job, plan.worst.name, chosen)
            for candidate in [job.with_config(changed(job.config, [change]))]
        )
        better = next(((c, j, p) for c, j, p in smaller if _size(p, plan.worst.name) < plan.peak_bytes), None)
        if better is None:
            break
        (key, value), following, plan = better
        chosen[key], job = value, following
    return job, replace(plan, choices=tuple(_in_words_of_choice(*change) for change in chosen.items()))


def _in_words_of_choice(key: str, value: object) -> str:
    return f"{key}={value}, which was auto: {PRICES[key]}"


def _size(plan: MemoryPlan, phase: str) -> int:
    return next(each.total_bytes for each in plan.phases if each.name == phase)


def _remedies(job: Job, phase: str, chosen: Mapping[str, object]) -> Iterator[Change]:
    """Smaller values of what is, or was, `auto`, that may help the phase; the cheapest first."""
    data, memory = job.config.data, job.config.memory
    written = {
        "memory.rows_per_micro_batch": memory.rows_per_micro_batch,
        "memory.prompts_per_decode": memory.prompts_per_decode,
        "memory.rows_per_decode": memory.rows_per_decode,
        "memory.logprob_chunk": memory.logprob_chunk,
        "memory.focus_chunk": memory.focus_chunk,
        "data.max_pixels": data.max_pixels,
    }
    for key, value in _smaller(job, phase):
        if written[key] == "auto" or key in chosen:
            yield key, value


def _smaller(job: Job, phase: str) -> Iterator[Change]:
    """The next smaller value of each setting that bears on a phase."""
    memory, data = job.config.memory, job.config.data
    if phase in ("rollout", "measuring"):
        together = job.prompts_at_once if phase == "rollout" else job.measured_at_once
        if together > 1:
            yield "memory.prompts_per_decode", together // 2
        elif phase == "rollout" and job.rows_at_once > 1:
            yield "memory.rows_per_decode", job.rows_at_once // 2
    if phase in ("score", "update"):
        plan = job.update_plan
        if memory.rows_per_micro_batch == "auto":
            yield "memory.rows_per_micro_batch", plan.rows  # every layer but the last is then run again
        if plan.rows > 1:
            yield "memory.rows_per_micro_batch", plan.rows // 2
        if memory.logprob_tokens > SMALLEST_CHUNK:
            yield "memory.logprob_chunk", memory.logprob_tokens // 2
        if memory.focus_tokens > SMALLEST_CHUNK:
            yield "memory.focus_chunk", memory.focus_tokens // 2
    if data.pixel_budget > SMALLEST_BUDGET:
        yield "data.max_pixels", max(data.pixel_budget * 3 // 4, SMALLEST_BUDGET)


def _single_changes(job: Job) -> list[list[Change]]:
    """Changes that may do alone, each kind from the mildest to the strongest."""
    config = job.config
    once: list[tuple[str, object, bool]] = [
        ("engine", "shared", config.engine != "shared"),
        ("gradient_checkpointing", True, not config.gradient_checkpointing),
        ("quantization", "nf4", config.quantization != "nf4"),
        ("decode_weights", "quantized", config.decodes_from_copy),
        ("optim", "adamw_8bit", job.device == "cuda" and not job.uses_8bit_optimizer),
        ("memory.prompts_per_decode", 1, config.memory.prompts_per_decode not in ("auto", 1)),
        ("memory.rows_per_decode", 1, config.memory.rows_per_decode not in ("auto", 1)),
        ("memory.rows_per_micro_batch", 1, config.memory.rows_per_micro_batch not in ("auto", 1)),
        ("memory.logprob_chunk", SMALLEST_CHUNK, config.memory.logprob_tokens > SMALLEST_CHUNK),
        ("lora.vision", False, config.lora.vision),
    ]
    changes: list[list[Change]] = [[(key, value)] for key, value, differs in once if differs]
    changes.append([("max_completion_length", value) for value in _halves(config.max_completion_length, 64)])
    if job.prompt.image_tokens:
        changes.append([("data.max_pixels", value) for value in _halves(config.data.pixel_budget, SMALLEST_BUDGET)])
    changes.append([("num_generations", value) for value in _halves(config.num_generations, 2)])
    return changes


def _joined_changes(job: Job, limit_bytes: int) -> list[Change]:
    """The fewest of the strongest changes that fit together; empty where none do."""
    strongest = [changes[-1] for changes in _single_changes(job) if changes]
    if not _fits(job, strongest, limit_bytes):
        return []
    needed = strongest
    for change in strongest:
        fewer = [each for each in needed if each != change]
        if _fits(job, fewer, limit_bytes):
            needed = fewer
    return needed


def _halves(value: int, least: int) -> list[int]:
    halves = []
    while value // 2 >= least:
        value //= 2
        halves.append(value)
    return halves


def _fits(job: Job, changes: list[Change], limit_bytes: int) -> bool:
    if is_beyond(job.model.model_type, job.config.dtype):
        return False
    return _shrunk(job.with_config(changed(job.config, changes)), limit_bytes)[1].fits


def changed(config: RunConfig, changes: list[Change]) -> RunConfig:
    """The configuration with some settings changed, which remembers that the planner did it."""
    sources = {**config.sources, **{key: CHOSEN for key, _ in changes}}
    for key, value in changes:
        section, dot, name = key.partition(".")
        inner = getattr(config, section).model_copy(update={name: value}) if dot else value  # a key of the schema
        config = config.model_copy(update={section: inner})
    return config.with_sources(sources)


def _as_words(changes: list[Change]) -> str:
    return " ".join(f"--set {key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in changes)


def _in_words(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 100_000_000 else f"{size / 1e6:.2f} MB"


def _refusal(job: Job, plan: MemoryPlan) -> str:
    limit = plan.limit_bytes or 0
    weights = plan.worst.parts["weights"]
    ways = would_fit(job, limit)
    told = "\n".join(f"  {way}" for way in ways)
    what = (
        f"{job.config.model} needs {_in_words(plan.needed_bytes)} in {plan.worst.name} with everything that is auto at "
        f"its smallest ({_in_words(weights)} of it weights, {_in_words(plan.reserve_bytes)} reserve), but may use "
        f"{_in_words(limit)}."
    )
    return f"{what} Any one of these lines fits:\n{told}" if ways else f"{what} No setting makes it fit."
