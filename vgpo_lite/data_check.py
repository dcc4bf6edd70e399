"""A data set looked at before anything is trained on it: what a run would keep, leave out, and show the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vgpo_lite.datasets import open_rows, refuse_if_too_bad
from vgpo_lite.errors import DataError
from vgpo_lite.interruption import StopFlag
from vgpo_lite.listening import SilentListener
from vgpo_lite.models import processor_alone
from vgpo_lite.preparation import UNGRADABLE, fitting_rows, gradable_rows, ordered_rows
from vgpo_lite.prompts import encode_prompt, images_scaled_down, prompt_image_tokens, prompt_lengths, shown_prompt
from vgpo_lite.rewards import Grader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.data_types import Outline
    from vgpo_lite.datasets import DataReport, DataSplit, Rows
    from vgpo_lite.listening import Listener
    from vgpo_lite.prompts import Processor

SHOWN_PROMPTS = 3
_LOOK_UP_EVERY = 1000  # rows, as the check of rows itself does


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How a number is spread over rows or images.

    Attributes:
        least: Smallest value.
        median: Half of the values are at most this.
        high: 95 % of the values are at most this: one of the values themselves, nothing between two.
        most: Largest value.
    """

    least: int
    median: float
    high: int
    most: int


@dataclass(frozen=True, kw_only=True)
class ShownPrompt:
    """One prompt for the user to read.

    Attributes:
        sample_id: The row it was made from.
        text: What the model reads, images as counts of tokens.
        tokens: Tokens in all.
        answer: The gold; None where the row has none.
    """

    sample_id: str
    text: str
    tokens: int
    answer: str | None


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """What a run would make of a data set.

    Attributes:
        columns: What each stored column serves as; empty for rows that are drawn.
        train: Rows that would train.
        held_out: Rows that would measure.
        report: Rows left out, with reasons.
        ungradable: Name and gold of each row whose gold would not be graded right.
        spreads: Statistics by name, the unit in the name; over every row whose gold can be graded.
        scaled_down: Images larger than `data.max_pixels`, which the model sees smaller.
        images: Images in all.
        prompts: A few prompts.
        notes: What else the user should know.
        problem: Why a run would refuse the data set; None where it would not.
    """

    columns: Mapping[str, str]
    train: int
    held_out: int
    report: DataReport
    ungradable: tuple[tuple[str, str | None], ...]
    spreads: Mapping[str, Spread]
    scaled_down: int
    images: int
    prompts: tuple[ShownPrompt, ...]
    notes: tuple[str, ...]
    problem: str | None


def check_data(config: RunConfig, *, listener: Listener | None = None) -> DataCheck:
    """Look at a data set as a run would, with the model's processor and without its weights.

    Args:
        config: The settings of that run; `data.max_bad_rows` decides on `problem` alone.
        listener: Told what is being checked; None: nobody.

    Raises:
        ConfigError: A split, subset, revision or column that does not exist.
        DataError: The data set cannot be had, or has no usable row at all.
        ModelError: The model's processor cannot be found, fetched or used.
        InterruptedRunError: A signal came.
    """
    listener = SilentListener() if listener is None else listener
    with StopFlag() as stop, Grader(config.reward, poll=stop.poll) as grader:

        def checking(phase: str) -> Callable[[int, int], None]:
            def tell(done: int, total: int) -> None:
                stop.poll()
                listener.progressed(phase, done, total)

            return tell

        processor = processor_alone(config)
        patient = config.model_copy(update={"data": config.data.model_copy(update={"max_bad_rows": 1.0})})
        split = open_rows(patient, progress=checking("checking rows"))
        listener.noted("grading each gold by itself")
        train, report = gradable_rows(split.train, grader, split.report, config)
        held_out, report = gradable_rows(split.held_out, grader, report, config)
        train, report = ordered_rows(train, processor, config, report)
        held_out, report = ordered_rows(held_out, processor, config, report)
        outlines = [*train.outlines(), *held_out.outlines()]
        spreads = _spreads(outlines, processor, config, checking("counting tokens"))
        train, report = fitting_rows(train, processor, config, report)
        held_out, report = fitting_rows(held_out, processor, config, report)
        prompts, damaged = _shown_prompts(train if len(train) else held_out, processor, config)
    sizes = [size for outline in outlines for size in outline.image_sizes]
    return DataCheck(
        columns=split.columns,
        train=len(train),
        held_out=len(held_out),
        report=report,
        ungradable=_golds_of(report.dropped.get(UNGRADABLE, ()), split),
        spreads=spreads,
        scaled_down=sum(images_scaled_down(each.image_sizes, processor, config.data) for each in outlines),
        images=len(sizes),
        prompts=prompts,
        notes=(*split.notes, *damaged),
        problem=_problem(report, config),
    )


def _golds_of(names: Sequence[str], split: DataSplit) -> tuple[tuple[str, str | None], ...]:
    if not names:
        return ()
    golds = {each.sample_id: each.answer for rows in (split.train, split.held_out) for each in rows.outlines()}
    return tuple((name, golds[name]) for name in names)


def _spreads(
    outlines: Sequence[Outline], processor: Processor, config: RunConfig, progress: Callable[[int, int], None]
) -> dict[str, Spread]:
    sizes = [size for outline in outlines for size in outline.image_sizes]
    tokens = [sum(prompt_image_tokens(each.image_sizes, processor, config.data)) for each in outlines]
    lengths = prompt_lengths(_told(outlines, progress), processor, config.data)
    values = {
        "images per row": [len(outline.image_sizes) for outline in outlines],
        "image width, pixels": [width for _, width in sizes],
        "image height, pixels": [height for height, _ in sizes],
        "image tokens per prompt": tokens,
        "text tokens per prompt": [whole - image for whole, image in zip(lengths, tokens, strict=True)],
        "tokens per prompt": lengths,
    }
    return {name: _spread(numbers) for name, numbers in values.items() if numbers}


def _told(outlines: Sequence[Outline], progress: Callable[[int, int], None]) -> Iterator[Outline]:
    for place, outline in enumerate(outlines):
        if place % _LOOK_UP_EVERY == 0:
            progress(place, len(outlines))
        yield outline


def _spread(numbers: Sequence[int]) -> Spread:
    values = np.array(numbers)
    high = np.quantile(values, 0.95, method="inverted_cdf")
    return Spread(least=int(values.min()), median=float(np.median(values)), high=int(high), most=int(values.max()))


def _shown_prompts(
    rows: Rows, processor: Processor, config: RunConfig
) -> tuple[tuple[ShownPrompt, ...], tuple[str, ...]]:
    """The first prompt, one from the middle and the last; and what is wrong with those that cannot be made."""
    places = sorted({0, len(rows) // 2, len(rows) - 1}) if len(rows) else []
    shown, damaged = [], []
    for place in places[:SHOWN_PROMPTS]:
        try:
            prompt = encode_prompt(rows[place], processor, config.data)
        except DataError as error:
            damaged.append(str(error))
            continue
        shown.append(
            ShownPrompt(
                sample_id=prompt.sample.sample_id,
                text=shown_prompt(prompt, processor),
                tokens=len(prompt.input_ids),
                answer=prompt.sample.answer,
            )
        )
    return tuple(shown), tuple(damaged)


def _problem(report: DataReport, config: RunConfig) -> str | None:
    try:
        refuse_if_too_bad(report, max_bad_rows=config.data.max_bad_rows, apart=(UNGRADABLE,))
    except DataError as error:
        return str(error)
    return None
