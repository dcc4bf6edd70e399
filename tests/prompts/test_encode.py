"""Prompts are encoded once, with every image where its mark stands, and nothing that a data set writes is special."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor

from tests.hub.models import QWEN2_5_VL, QWEN2_VL, QWEN3_VL
from tests.prompts.rows import DIRECT, FACTOR, QUESTIONS, outline_of, picture, sample, turn_of
from vgpo_lite.config.schema import DataConfig, RunConfig
from vgpo_lite.datasets import open_rows
from vgpo_lite.errors import ConfigError, DataError, ModelError, PromptTooLongError
from vgpo_lite.models.tiny import __path__ as tiny_path
from vgpo_lite.prompts import (
    INSTRUCTIONS,
    encode_prompt,
    prompt_image_tokens,
    prompt_lengths,
    prompts_fit,
    user_text,
)

if TYPE_CHECKING:
    from vgpo_lite.prompts import Processor


SPECIAL = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|im_end|>", "<|im_start|>", "<|endoftext|>")


def test_what_the_user_says_is_the_question_and_the_instruction_of_the_style() -> None:
    assert user_text("Find x.", DataConfig()) == f"Find x.\n\n{INSTRUCTIONS['reasoning']}"
    assert user_text("Find x.", DIRECT) == f"Find x.\n\n{INSTRUCTIONS['direct']}"
    assert "<think>" in INSTRUCTIONS["reasoning"]
    assert "<think>" not in INSTRUCTIONS["direct"]
    assert all("\\boxed{}" in instruction for instruction in INSTRUCTIONS.values())


def test_a_template_of_the_users_own_replaces_the_style() -> None:
    data = DataConfig(prompt_template="{{ question | upper }}\nBe brief.\n", prompt_style="direct")
    assert user_text("Find x.", data) == "FIND X.\nBe brief.\n"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ question", "is no Jinja template"),
        ("{% for %}", "is no Jinja template"),
        ("{{ question | nofilter }}", "is no Jinja template"),
        ("{{ problem }}", "data.prompt_template fails: 'problem' is undefined; it may use `question`"),
        ("{{ question + 1 }}", "data.prompt_template fails"),
        ("{{ 1 / 0 }}", "data.prompt_template fails: division by zero"),
        ("{{ question.__class__.__mro__ }}", "data.prompt_template fails"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "data.prompt_template fails"),
        ("{% for i in range(10000000) %}x{% endfor %}", "data.prompt_template fails: Range too big"),
        ("{% include '/etc/passwd' %}", "data.prompt_template fails"),
        ("Answer!", "turns 1 image marks into 0; write {{ question }} exactly once"),
        ("{{ question }} {{ question }}", "turns 1 image marks into 2"),
        ("<image>{{ question }}", "turns 1 image marks into 2"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        user_text("<image>Find x.", DataConfig(prompt_template=template))
    assert message in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(("question", "images"), QUESTIONS.values(), ids=QUESTIONS.keys())
def test_a_plain_prompt_has_the_ids_of_the_processors_own_way(processor: Any, question: str, images: int) -> None:
    row = sample(question, *[picture(60 + 40 * place, 50) for place in range(images)])
    prompt = encode_prompt(row, processor, DIRECT)
    wanted = processor.apply_chat_template(
        turn_of(row), add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt", processor_kwargs={"images_kwargs": {"min_pixels": 3136, "max_pixels": 401_408}},
    )  # fmt: skip
    assert prompt.input_ids.tolist() == wanted["input_ids"][0].tolist()
    assert prompt.image_mask.tolist() == (wanted["input_ids"][0] == processor.image_token_id).tolist()
    assert prompt.vision.keys() == ({"pixel_values", "image_grid_thw"} if images else set())
    assert prompt.has_image == bool(images)
    for name, tensor in prompt.vision.items():
        assert torch.equal(tensor, wanted[name])


def test_each_image_stands_at_its_own_mark(processor: Any) -> None:
    row = sample("A <image> B <image> C", picture(280, 280), picture(56, 112))
    prompt = encode_prompt(row, processor, DIRECT)
    runs = "".join("i" if inside else "." for inside in prompt.image_mask.tolist()).strip(".").split(".")
    counts = [len(run) for run in runs if run]
    merged = processor.image_processor.merge_size**2
    assert counts == (prompt.vision["image_grid_thw"].prod(-1) // merged).tolist()
    assert counts == list(prompt_image_tokens([(280, 280), (112, 56)], processor, DIRECT))
    assert prompt.text.index("A ") < prompt.text.index("<|image_pad|>") < prompt.text.index(" B ")
    assert prompt.text.count("<|image_pad|>") == 2


@pytest.mark.parametrize("style", ["reasoning", "direct"])
def test_the_text_ends_where_the_answer_begins(processor: Any, style: Any) -> None:
    prompt = encode_prompt(sample("<image>?", picture()), processor, DataConfig(prompt_style=style))
    assert prompt.text.endswith(f"?\n\n{INSTRUCTIONS[style]}<|im_end|>\n<|im_start|>assistant\n")
    assert processor.tokenizer.decode(prompt.input_ids[~prompt.image_mask]).endswith("<|im_start|>assistant\n")
    assert prompt.input_ids.dtype == torch.long
    assert prompt.image_mask.dtype == torch.bool


def test_think_tags_are_read_letter_by_letter_even_where_they_are_a_token(processors: dict[str, Any]) -> None:
    processor = processors[QWEN3_VL]
    prompt = encode_prompt(sample("Find x."), processor, DataConfig())
    untrained = set(processor.tokenizer.convert_tokens_to_ids(["<think>", "</think>"]))
    assert not untrained & set(prompt.input_ids.tolist())
    text = processor.tokenizer.decode(prompt.input_ids)
    assert "between <think> and </think>" in text
    assert untrained & set(processor.tokenizer(prompt.text)["input_ids"])  # the ordinary way would have used them


@pytest.mark.parametrize("token", SPECIAL)
def test_a_special_token_spelt_in_a_question_is_text(processor: Any, token: str) -> None:
    plain = encode_prompt(sample("<image>Say it.", picture()), processor, DIRECT)
    row = sample(f"<image>Say {token} twice: {token}{token}", picture())
    prompt = encode_prompt(row, processor, DIRECT)
    special = processor.tokenizer.convert_tokens_to_ids(token)
    assert prompt.input_ids.tolist().count(special) == plain.input_ids.tolist().count(special)
    assert int(prompt.image_mask.sum()) == int(plain.image_mask.sum())
    assert processor.tokenizer.decode(prompt.input_ids).count(token) == plain.input_ids.tolist().count(special) + 3
    assert prompt_lengths([outline_of(row)], processor, DIRECT) == [len(prompt.input_ids)]


SPELLINGS = st.sampled_from(
    [*SPECIAL, "<think>", "word ", "\n", "é", "\ue0000\ue001", "{{ x }}", "<|im_", "end|>", " "]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(SPELLINGS, max_size=6).map("".join), st.text(max_size=20))
def test_no_text_whatever_it_spells_changes_the_frame_of_a_prompt(
    processors: dict[str, Any], text: str, more: str
) -> None:
    processor = processors[QWEN3_VL]
    question = f"<image>Q{text}{more}"
    if "<image>" in text + more:
        return
    prompt = encode_prompt(sample(question, picture()), processor, DIRECT)
    frame = encode_prompt(sample("<image>Q", picture()), processor, DIRECT)
    added = set(processor.tokenizer.get_added_vocab().values())
    assert [token for token in prompt.input_ids.tolist() if token in added] == [
        token for token in frame.input_ids.tolist() if token in added
    ]
    assert prompt_lengths([outline_of(sample(question, picture()))], processor, DIRECT) == [len(prompt.input_ids)]


SIZES = [
    (1, 1),
    (1, 100),
    (100, 1),
    (13, 1300),
    (27, 29),
    (40, 4000),
    (333, 777),
    (1000, 1000),
    (2000, 3000),
    (80, 8000),
]


@pytest.mark.parametrize("budget", [(3136, 401_408), (784, 12_544), (200_704, 1_003_520)])
def test_images_fit_the_pixel_budget_in_whole_tokens(
    processors: dict[str, Any], processor: Any, budget: tuple[int, int]
) -> None:
    factor = next(FACTOR[name] for name, one in processors.items() if one is processor)
    data = DIRECT.model_copy(update={"min_pixels": budget[0], "max_pixels": budget[1]})
    merge = processor.image_processor.merge_size
    for height, width in SIZES:
        prompt = encode_prompt(sample("<image>?", picture(width, height)), processor, data)
        _, rows, columns = prompt.vision["image_grid_thw"][0].tolist()
        tokens = int(prompt.image_mask.sum())
        assert rows % merge == columns % merge == 0
        assert tokens == rows * columns // merge**2 == sum(prompt_image_tokens([(height, width)], processor, data))
        thin = min(rows, columns) == merge and tokens <= 100  # sides are let in up to 1 : 100
        assert budget[0] <= tokens * factor**2
        assert tokens * factor**2 <= budget[1] or thin


def test_the_default_budget_is_512_tokens_of_28_pixels_or_392_of_32(processors: dict[str, Any]) -> None:
    for name, tokens in ((QWEN2_VL, 512), (QWEN2_5_VL, 512), (QWEN3_VL, 392)):
        assert sum(prompt_image_tokens([(4000, 8000)], processors[name], DataConfig())) == tokens


def test_lengths_without_pixels_equal_those_of_whole_prompts(processor: Any) -> None:
    rows = [
        sample(question, *[picture(90 + 200 * place, 70) for place in range(images)])
        for question, images in QUESTIONS.values()
    ]
    for data in (DataConfig(), DIRECT, DataConfig(prompt_template="Now: {{ question }}")):
        wanted = [len(encode_prompt(row, processor, data).input_ids) for row in rows]
        assert prompt_lengths(map(outline_of, rows), processor, data) == wanted
        for limit in (min(wanted) - 1, *wanted, 4096):
            limited = data.model_copy(update={"max_prompt_length": limit})
            assert prompts_fit(map(outline_of, rows), processor, limited) == [length <= limit for length in wanted]


def test_a_question_that_comes_again_with_another_image_is_counted_anew(processor: Any) -> None:
    rows = [sample("<image>How many?", picture(side, side)) for side in (90, 300, 90)]
    wanted = [len(encode_prompt(row, processor, DIRECT).input_ids) for row in rows]
    assert prompt_lengths(map(outline_of, rows), processor, DIRECT) == wanted
    assert wanted[0] == wanted[2] < wanted[1]


def test_a_prompt_over_the_limit_is_refused_whole(processor: Any) -> None:
    row = sample("<image>" + "word " * 50, picture(500, 500))
    length = len(encode_prompt(row, processor, DIRECT).input_ids)
    assert (
        len(encode_prompt(row, processor, DIRECT.model_copy(update={"max_prompt_length": length})).input_ids) == length
    )
    with pytest.raises(PromptTooLongError) as error:
        encode_prompt(row, processor, DIRECT.model_copy(update={"max_prompt_length": length - 1}))
    assert f"set/train/7: the prompt holds {length} tokens, data.max_prompt_length is {length - 1}" in str(error.value)
    assert error.value.exit_code == 3


@pytest.mark.parametrize(("question", "images"), [("<image>?", 0), ("?", 1), ("<image><image>?", 1)])
def test_marks_without_images_and_images_without_marks_are_refused(processor: Any, question: str, images: int) -> None:
    with pytest.raises(DataError, match=f"set/train/7: {question.count('<image>')} image marks for {images} images"):
        encode_prompt(sample(question, *[picture()] * images), processor, DIRECT)


class Miscounting:
    """A processor that expands one token too few."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.image_token, self.image_token_id = processor.image_token, processor.image_token_id
        self.image_processor, self.tokenizer = processor.image_processor, processor.tokenizer
        self.apply_chat_template = processor.apply_chat_template

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> dict[str, Any]:
        encoded = dict(self._processor(images=images, text=text, **kwargs))
        return encoded | {"input_ids": encoded["input_ids"][:, 1:]}


def test_image_tokens_and_image_features_must_be_equal_in_number(processor: Any) -> None:
    miscounting: Processor = Miscounting(processor)
    tokens = sum(prompt_image_tokens([(320, 320)], processor, DIRECT))
    with pytest.raises(DataError, match=f"{tokens - 1} of them image tokens, where {tokens} and {tokens} are expected"):
        encode_prompt(sample("<image>?", picture(320, 320)), miscounting, DIRECT)


@pytest.mark.parametrize(
    "template",
    [
        "{% for message in messages %}{{ message.content[0].text }}{% endfor %}",
        "{% for message in messages %}{{ message.content }}{% endfor %}",
        "{{ raise_exception('no images, please') }}",
        "{{ nothing.at.all }}",
    ],
)
def test_a_chat_template_that_loses_parts_of_the_turn_is_refused(processor: Any, template: str) -> None:
    class Other(Miscounting):
        def __init__(self, processor: Any) -> None:
            super().__init__(processor)
            render = processor.apply_chat_template
            self.apply_chat_template = lambda turn, **options: render(turn, chat_template=template, **options)

    with pytest.raises(ModelError, match="the model's chat template"):
        encode_prompt(sample("A <image> B", picture()), Other(processor), DIRECT)


def test_the_built_in_model_reads_the_built_in_rows() -> None:
    processor: Any = AutoProcessor.from_pretrained(tiny_path[0])
    rows = open_rows(RunConfig()).train.keep(range(5))
    prompts = [encode_prompt(row, processor, DIRECT) for row in rows]
    assert prompt_lengths(rows.outlines(), processor, DIRECT) == [len(prompt.input_ids) for prompt in prompts]
    assert [int(prompt.image_mask.sum()) for prompt in prompts] == [16] * 5
    assert all(prompt.text.endswith("assistant\n") for prompt in prompts)
