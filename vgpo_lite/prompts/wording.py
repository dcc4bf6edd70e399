"""What the user's turn says: the question and how to answer it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vgpo_lite.data_types import IMAGE_MARK
from vgpo_lite.errors import ConfigError

if TYPE_CHECKING:
    from vgpo_lite.config.schema import DataConfig

INSTRUCTIONS = {
    "reasoning": "Reason step by step between <think> and </think>. Then give the final answer in \\boxed{}.",
    "direct": "Give only the final answer, in \\boxed{}.",
}
"""What each prompt style asks for, below the question."""

_TEMPLATE_FAILURES = (
    TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
)


def user_text(question: str, data: DataConfig) -> str:
    """What the user's turn says: the question and the instruction of the prompt style, or the user's template rendered.

    Args:
        question: The question, with its `<image>` marks.
        data: `prompt_style` and `prompt_template` are read. A template sees `question`.

    Raises:
        ConfigError: The template is broken, fails, or loses or adds an image mark.
    """
    if data.prompt_template is None:
        return f"{question}\n\n{INSTRUCTIONS[data.prompt_style]}"
    template = _compiled(data.prompt_template)
    try:
        text = template.render(question=question)
    except _TEMPLATE_FAILURES as error:
        raise ConfigError(f"data.prompt_template fails: {error}; it may use `question`, and nothing else") from error
    wanted, found = question.count(IMAGE_MARK), text.count(IMAGE_MARK)
    if wanted != found:
        raise ConfigError(
            f"data.prompt_template turns {wanted} image marks into {found}; write {{{{ question }}}} exactly once, and "
            f"no {IMAGE_MARK} of its own"
        )
    return text


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise ConfigError(f"data.prompt_template is no Jinja template: {error}") from error
