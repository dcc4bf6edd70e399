"""`vgpo-lite chat`: ask a model about pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vgpo_lite.commands.options import AdapterOption, SetOption
from vgpo_lite.errors import ConfigError, DataError

if TYPE_CHECKING:
    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.data_types import Sample, Sampling


def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Preset, hub id, folder of a model, or run directory.")],
    question: Annotated[str, typer.Option("--question", "-q", metavar="TEXT", help="What to ask.")],
    images: Annotated[
        list[Path] | None,
        typer.Option("--image", "-i", metavar="FILE", help="A picture. Repeatable.", show_default=False),
    ] = None,
    adapter: AdapterOption = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            "-d",
            metavar="DATASET",
            help="Ask as its rows are asked: its prompt and pixel budget. A run brings its own.",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", min=0.0, help="0: the likeliest answer, always the same.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Another answer at temperature > 0.")] = 0,
    overrides: SetOption = None,
) -> None:
    """Ask a model about a picture, the way it is asked in training.

    Only the answer goes to stdout. A picture stands where the question has
    `<image>`, or in front of it.

    Examples:

      vgpo-lite chat runs/qwen2-vl-2b-geo3k -i figure.png -q 'How long is AB?'

      vgpo-lite chat qwen2-vl-2b --image shelf.jpg --question 'How many books?'

      vgpo-lite chat qwen2-vl-2b -d geo3k -i figure.png -q 'How long is AB?'
    """
    from vgpo_lite.commands.targets import target
    from vgpo_lite.config.load import resolve
    from vgpo_lite.data_types import Sampling
    from vgpo_lite.models.backends import import_backend

    paths = images or []
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"there is no picture {path}.")
    named = target(model, adapter)
    flags = {"model": named.model, "dataset": dataset, "adapter": named.adapter}
    config = resolve(recipe=named.recipe, overrides=overrides or (), flags=flags, flag_style="--")
    import_backend(config.backend, device=config.device)
    sampling = Sampling(
        num_generations=1, max_completion_length=config.max_completion_length, temperature=temperature, seed=seed
    )
    typer.echo(_answer(config, own_sample(question, paths), sampling).strip())


def own_sample(question: str, paths: list[Path]) -> Sample:
    """The question as a row like any other.

    Raises:
        DataError: A picture cannot be used, or the marks in the question do not match the pictures.
    """
    from vgpo_lite.data_types import Sample
    from vgpo_lite.datasets.columns import is_unicode
    from vgpo_lite.datasets.images import decode_image
    from vgpo_lite.datasets.marks import place_marks
    from vgpo_lite.datasets.refusals import RefusalError

    if not is_unicode(question):
        raise DataError(f"the question cannot be asked: {question[:80]!r} holds half a character (a lone surrogate)")
    images = []
    for path in paths:
        try:
            images.append(decode_image(path))
        except RefusalError as error:
            raise DataError(f"the picture {path} cannot be used: {error.reason}: {error.detail}") from error
    try:
        text, order = place_marks(question, len(images))
    except RefusalError as error:
        raise DataError(f"the question cannot be asked: {error.reason}: {error.detail}") from error
    return Sample(sample_id="chat", question=text, images=tuple(images[place] for place in order), answer=None)


def _answer(config: RunConfig, sample: Sample, sampling: Sampling) -> str:
    from vgpo_lite.engine import make_engine
    from vgpo_lite.models import load_policy
    from vgpo_lite.prompts import encode_prompt

    policy = load_policy(config)
    prompt = encode_prompt(sample, policy.processor, config.data)
    [group] = make_engine(policy, config).sample([prompt], sampling, places=[0], on_step=None)
    return group.texts[0]
