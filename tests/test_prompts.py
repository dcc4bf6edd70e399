"""Prompts are encoded once, with every image where its mark stands, and nothing that a data set writes is special."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import AddedToken
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaOnevisionProcessor
from transformers.image_processing_utils import select_best_resolution

from tests.hub.gemma import GEMMA3, LINE_ENDS, SEQUENCE
from tests.hub.models import QWEN2_5_VL, QWEN2_VL, QWEN3_VL, write_model
from tests.hub.tiled import LLAVA_ONEVISION, SMOLVLM2, TILED
from vgpo_lite.config.schema import DataConfig, RunConfig
from vgpo_lite.data_types import Outline, Sample
from vgpo_lite.datasets import open_rows
from vgpo_lite.datasets.reports import DataReport
from vgpo_lite.errors import ConfigError, DataError, ImageOrderError, ModelError, PromptTooLongError
from vgpo_lite.models.families import family_of
from vgpo_lite.models.tiny import __path__ as tiny_path
from vgpo_lite.preparation import ordered_rows
from vgpo_lite.prompts import (
    INSTRUCTIONS,
    encode_prompt,
    image_grids,
    largest_prompt,
    prompt_image_tokens,
    prompt_lengths,
    prompts_fit,
    prompts_in_order,
    user_text,
)
from vgpo_lite.prompts.grids import NOWHERE
from vgpo_lite.prompts.showing import showing_of

if TYPE_CHECKING:
    from pathlib import Path

    from vgpo_lite.data_types import Prompt
    from vgpo_lite.prompts import Processor

FACTOR = {QWEN2_VL: 28, QWEN2_5_VL: 28, QWEN3_VL: 32}
"""Pixels along one side of an image token: patch size times merge size."""

SPECIAL = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|im_end|>", "<|im_start|>", "<|endoftext|>")


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The real processors of the Qwen families over a small vocabulary; Qwen3's has `<think>` as one token."""
    made = {}
    for name in FACTOR:
        made[name] = AutoProcessor.from_pretrained(write_model(tmp_path_factory.mktemp("model"), name))
    thoughts = [AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")]
    made[QWEN3_VL].tokenizer.add_tokens(thoughts)
    return made


@pytest.fixture(params=FACTOR)
def processor(request: pytest.FixtureRequest, processors: dict[str, Any]) -> Any:
    return processors[request.param]


def picture(width: int = 60, height: int = 40, colour: str = "red") -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def sample(question: str, *images: Image.Image) -> Sample:
    return Sample(sample_id="set/train/7", question=question, images=images, answer="3")


def outline_of(row: Sample) -> Outline:
    sizes = tuple((image.height, image.width) for image in row.images)
    return Outline(sample_id=row.sample_id, question=row.question, image_sizes=sizes, answer=row.answer)


DIRECT = DataConfig(prompt_style="direct")


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


QUESTIONS = {
    "no image": ("Find the angle x.", 0),
    "image first": ("<image>How many red circles are there?", 1),
    "image last": ("How many are in <image>", 1),
    "two images": ("Is <image> like <image>?", 2),
    "images side by side": ("<image><image>Compare. é ½ 数 \U0001f600", 2),
    "white space": (" <image>\n\nFind   x.\t", 1),
}


@pytest.mark.parametrize(("question", "images"), QUESTIONS.values(), ids=QUESTIONS.keys())
def test_a_plain_prompt_has_the_ids_of_the_processors_own_way(processor: Any, question: str, images: int) -> None:
    row = sample(question, *[picture(60 + 40 * place, 50) for place in range(images)])
    prompt = encode_prompt(row, processor, DIRECT)
    content: list[dict[str, Any]] = []
    shown = iter(row.images)
    for place, piece in enumerate(user_text(question, DIRECT).split("<image>")):
        content += [{"type": "image", "image": next(shown)}] if place else []
        content += [{"type": "text", "text": piece}] if piece else []
    wanted = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
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


TILED_QUESTIONS = {
    "no image": ("Find the angle x.", []),
    "image first": ("<image>How many red circles are there?", [(60, 80)]),
    "text first": ("How many are in <image>", [(300, 100)]),
    "two images": ("<image>Is it like <image>?", [(300, 200), (20, 220)]),
    "side by side": ("Are they <image><image>alike?", [(300, 200), (20, 220)]),
    "long and thin": ("<image>How long?", [(700, 10)]),
}


@pytest.fixture(scope="module", params=TILED)
def tiles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The real processors of the families with tiles, over a small vocabulary and small tiles."""
    return AutoProcessor.from_pretrained(write_model(tmp_path_factory.mktemp("model"), request.param))


def test_what_stands_for_images_and_turns_is_text_when_a_question_spells_it(tiles: Any) -> None:
    plain = encode_prompt(sample("<image>Say it.", picture()), tiles, DIRECT)
    for token in set(tiles.tokenizer.get_added_vocab()) - {"<image>"}:  # that one is the mark itself
        row = sample(f"<image>Say {token} twice: {token}{token}", picture())
        prompt = encode_prompt(row, tiles, DIRECT)
        special = tiles.tokenizer.convert_tokens_to_ids(token)
        assert prompt.input_ids.tolist().count(special) == plain.input_ids.tolist().count(special)
        assert int(prompt.image_mask.sum()) == int(plain.image_mask.sum())
        assert prompt_lengths([outline_of(row)], tiles, DIRECT) == [len(prompt.input_ids)]


SWALLOWS = "swallows blanks"
"""A tokenizer some of whose special tokens take the blanks around them away."""


@pytest.fixture(scope="module", params=[*FACTOR, *TILED, SWALLOWS])
def joining(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Processors whose vocabularies join blanks as the real ones do: line ends, spaces, a space and a line end."""
    swallows = request.param == SWALLOWS
    folder = write_model(tmp_path_factory.mktemp("model"), SMOLVLM2 if swallows else request.param)
    content = json.loads((folder / "tokenizer.json").read_text())
    for token in content["added_tokens"] if swallows else ():
        token["lstrip"] = token["content"] in ("<fake_token_around_image>", "<end_of_utterance>")
        token["rstrip"] = token["content"] in ("<fake_token_around_image>", "<global-img>")
    model = content["model"]
    for left, right in (("Ċ", "Ċ"), ("Ġ", "Ċ"), ("Ġ", "Ġ"), ("?", "Ċ")):
        model["vocab"][left + right] = max(model["vocab"].values()) + 1
        model["merges"].append([left, right])
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return AutoProcessor.from_pretrained(folder)


BLANKS = [
    "<image>How many?", "<image>\nHow many?", "<image>\n\n\nHow many?", "<image> How many?", "<image>\n How many?",
    "What is <image> in it?", "See <image>\nwhat?", "x <image> ", "What <image><image> \nit?", "\nHow many?",
    "\n\n How?\n", "How many?", "  <image>  ", "Which?\n<image>",
]  # fmt: skip


@pytest.mark.parametrize("question", BLANKS)
def test_blanks_between_the_models_text_and_the_users_are_read_as_one_stretch(joining: Any, question: str) -> None:
    images = [picture()] * question.count("<image>")
    prompt = encode_prompt(sample(question, *images), joining, DIRECT)
    wanted = joining(images=[images] if images else None, text=[prompt.text], return_tensors="pt",
                     text_kwargs={"add_special_tokens": False},
                     images_kwargs=dict(showing_of(joining).options(joining, DIRECT)))  # fmt: skip
    assert prompt.input_ids.tolist() == wanted["input_ids"][0].tolist()
    assert prompt_lengths([outline_of(prompt.sample)], joining, DIRECT) == [len(prompt.input_ids)]


def test_added_tokens_are_read_out_once_for_each_processor(gemma: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_prompt(sample("<image>?", picture()), gemma, DIRECT)
    monkeypatch.setattr(type(gemma.tokenizer), "backend_tokenizer", property(_ReadOnce(gemma.tokenizer).backend))
    prompt_lengths([outline_of(sample(f"<image>{place}?", picture())) for place in range(9)], gemma, DIRECT)


class _ReadOnce:
    """A tokenizer's backend that no longer tells its added tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer

    def backend(self, _tokenizer: Any) -> Any:
        return self

    def get_added_tokens_decoder(self) -> Any:
        raise AssertionError("the added tokens are read again")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def test_rows_whose_images_would_be_moved_from_their_text_are_left_out_one_by_one(tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(write_model(tmp_path / "model", LLAVA_ONEVISION))
    questions = ["<image>How many?", "<image>, <image> or <image>?", "<image><image>Compare.", "None."]
    outlines = [outline_of(sample(question, *[picture()] * question.count("<image>"))) for question in questions]
    assert prompts_in_order(outlines, processor, DIRECT) == [True, False, True, True]
    assert largest_prompt(outlines, processor, DIRECT).images == (14,)  # the second would show 15
    rows: Any = _Rows(outlines)
    kept, report = ordered_rows(rows, processor, RunConfig(), DataReport(kept=4))
    assert [outline.question for outline in kept.outlines()] == [questions[0], *questions[2:]]
    assert report.counts == {"text between images, which the model's chat template moves": 1}
    assert "'<image>, <image> or <image>?'" in str(report.examples)


class _Rows:
    def __init__(self, outlines: list[Outline]) -> None:
        self._outlines = outlines

    def outlines(self) -> list[Outline]:
        return self._outlines

    def keep(self, places: Any) -> _Rows:
        return _Rows([self._outlines[place] for place in places])


def test_only_what_the_budget_bounds_is_told_to_be_made_smaller(gemma: Any, processor: Any) -> None:
    short = DIRECT.model_copy(update={"max_prompt_length": 16})
    for one, told in ((gemma, False), (processor, True)):
        with pytest.raises(PromptTooLongError) as error:
            encode_prompt(sample("<image>How many red circles are there?", picture()), one, short)
        assert ("or lower data.max_pixels" in str(error.value)) == told


def test_the_largest_prompt_of_tiles_is_told_without_decoding(tiles: Any) -> None:
    rows = [
        sample("<image>?", picture(300, 200)),
        sample("Are these alike: <image><image><image>?", *[picture(300, 200)] * 3),
        sample("word " * 40),
    ]
    data = DIRECT.model_copy(update={"max_pixels": 60_000})
    prompts = [encode_prompt(row, tiles, data) for row in rows]
    largest = largest_prompt(map(outline_of, rows), tiles, data)
    assert largest.images == max((prompt.image_lengths for prompt in prompts), key=sum)
    assert largest.tokens == max(len(prompt.input_ids) for prompt in prompts)


def test_an_image_made_to_fit_the_budget_is_scaled_once_for_its_tiles(tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(write_model(tmp_path / "model", LLAVA_ONEVISION))
    image = Image.effect_noise((300, 500), 90).convert("RGB")
    prompt = encode_prompt(sample("<image>?", image), processor, DIRECT.model_copy(update={"max_pixels": 5 * 56**2}))
    # Four tiles beside the whole image: 2 x 2 keep 112 x 67 pixels of it, a column of 4 no more than 93 x 56.
    assert prompt.vision["image_sizes"].tolist() == [[112, 68]]
    assert prompt.vision["pixel_values"].shape == (1, 5, 3, 56, 56)
    canvas = {"image_grid_pinpoints": [[112, 112]]}
    own = processor(images=[[image]], text=["<image>"], return_tensors="pt", images_kwargs=canvas)["pixel_values"][0]
    pixels = prompt.vision["pixel_values"][0]
    torch.testing.assert_close(pixels[1:], own[1:], rtol=0, atol=1.5 / 127.5)  # one of 255 steps, by rounding
    blurred = (pixels[0] - own[0]).abs().mean()
    assert float(blurred) < 0.05  # the whole image was scaled twice
    small = encode_prompt(sample("<image>?", picture(100, 50)), processor, DIRECT)
    assert small.vision["image_sizes"].tolist() == [[50, 100]]
    several = sample("<image><image>?", image, image)
    several = encode_prompt(several, processor, DIRECT.model_copy(update={"max_pixels": 5 * 56**2}))
    assert several.vision["image_sizes"].tolist() == [[500, 300]] * 2  # each is one tile, whatever the budget


def test_the_model_takes_the_prompts_of_its_own_processor_alone_and_several(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", LLAVA_ONEVISION)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    family = family_of(model.config)
    for sizes in ([(300, 40)], [(20, 150)], [(400, 400)], [(50, 60), (300, 100)]):
        for pixels in (3136, 20_000, 401_408):
            row = sample("<image>" * len(sizes) + "?", *[picture(*size) for size in sizes])
            prompt = encode_prompt(row, processor, DIRECT.model_copy(update={"max_pixels": pixels}))
            features = family.encode_images(model, prompt)  # checked: one for each token
            with torch.no_grad():
                expected = model(input_ids=prompt.input_ids[None], **prompt.vision).logits
                inputs = family.prompt_inputs(model, prompt, features)
                states = family.language_model(model)(inputs_embeds=inputs.inputs_embeds).last_hidden_state
                torch.testing.assert_close(family.lm_head(model)(states), expected)


def shows_images_first(processor: Any) -> bool:
    return isinstance(processor, LlavaOnevisionProcessor)


def row_ends(prompt: Prompt, processor: Any) -> list[int]:
    """Tokens of each image that only end a row, by what is left of them without: whole tiles, cut to a map."""
    if not shows_images_first(processor):
        return [0] * len(prompt.image_lengths)
    if len(prompt.image_lengths) != 1:
        return [1] * len(prompt.image_lengths)
    sizes = prompt.vision["image_sizes"].tolist()
    return [processor._get_unpadded_features(*size, 2, 2, *_tiles(size, processor))[1] for size in sizes]


def _tiles(size: list[int], processor: Any) -> tuple[int, int]:
    height, width = select_best_resolution(size, processor.image_processor.image_grid_pinpoints)
    return height // 56, width // 56


@pytest.mark.parametrize(("question", "sizes"), TILED_QUESTIONS.values(), ids=TILED_QUESTIONS.keys())
@pytest.mark.parametrize("pixels", [3136, 20_000, 401_408])
def test_tiles_have_the_ids_and_pixels_of_the_processors_own_way(
    tiles: Any, question: str, sizes: list[tuple[int, int]], pixels: int
) -> None:
    data = DataConfig(prompt_style="direct", max_pixels=pixels)
    row = sample(question, *[Image.effect_noise((width, height), 90).convert("RGB") for height, width in sizes])
    if question == TILED_QUESTIONS["two images"][0] and shows_images_first(tiles):
        with pytest.raises(ImageOrderError, match="set/train/7: there is text between its 2 images"):
            encode_prompt(row, tiles, data)
        return
    prompt = encode_prompt(row, tiles, data)
    text = prompt.text
    given = [
        image.resize((width, height))
        for image, (height, width) in zip(row.images, showing_of(tiles).given(sizes, tiles, data), strict=True)
    ]
    wanted = tiles(
        images=[given] if sizes else None, text=[text], return_tensors="pt", add_special_tokens=False,
        images_kwargs=dict(showing_of(tiles).options(tiles, data)),
    )  # fmt: skip
    assert prompt.input_ids.tolist() == wanted["input_ids"][0].tolist()
    assert prompt.vision.keys() == wanted.keys() - {"input_ids", "attention_mask", "token_type_ids"}
    for name, tensor in prompt.vision.items():
        assert torch.equal(tensor, wanted[name])
    counts = list(prompt_image_tokens(sizes, tiles, data))
    assert int(prompt.image_mask.sum()) == sum(counts)
    assert prompt_lengths([outline_of(row)], tiles, data) == [len(prompt.input_ids)]
    shown = [count - ends for count, ends in zip(counts, row_ends(prompt, tiles), strict=True)]
    least = 2 if len(sizes) == 1 and shows_images_first(tiles) else 1  # LLaVA-OneVision: the whole image and a canvas
    assert all(count * 28**2 <= max(pixels, least * 56**2) for count in shown)
    grids = image_grids(sizes, tiles, data)
    assert [len(grid.areas) for grid in grids] == counts
    areas = [[area for area in grid.areas if area != NOWHERE] for grid in grids]
    for grid, own in zip(grids, areas, strict=True):
        assert all(0 <= top < bottom <= grid.rows for top, bottom, _, _ in own)
        assert all(0 <= left < right <= grid.columns for _, _, left, right in own)
        seen = {
            (row, column)
            for top, bottom, left, right in own
            for row in range(top, bottom)
            for column in range(left, right)
        }
        assert len(seen) == grid.rows * grid.columns
    assert all(NOWHERE not in grid.areas for grid in grids) or shows_images_first(tiles)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gemma 3's real processor over a small vocabulary."""
    return AutoProcessor.from_pretrained(write_model(tmp_path_factory.mktemp("model"), GEMMA3))


GEMMA_QUESTIONS = QUESTIONS | {
    "blanks between": ("<image> \n <image>\n\n\nCompare.\n\n\n\n", 2),
    "blanks inside": ("\tOne.\n\n\n\n\nTwo.  Three <image>", 1),
}


@pytest.mark.parametrize(("question", "images"), GEMMA_QUESTIONS.values(), ids=GEMMA_QUESTIONS.keys())
def test_gemma_reads_what_its_processor_writes(gemma: Any, question: str, images: int) -> None:
    row = sample(question, *[picture(60 + 40 * place, 50) for place in range(images)])
    prompt = encode_prompt(row, gemma, DIRECT)
    content: list[dict[str, Any]] = []
    shown = iter(row.images)
    for place, piece in enumerate(user_text(question, DIRECT).split("<image>")):
        content += [{"type": "image", "image": next(shown)}] if place else []
        content += [{"type": "text", "text": piece}] if piece else []
    wanted = gemma.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    assert prompt.input_ids.tolist() == wanted["input_ids"][0].tolist()
    assert prompt.image_mask.tolist() == wanted["token_type_ids"][0].bool().tolist()
    assert int(prompt.image_mask.sum()) == images * SEQUENCE
    assert prompt.image_lengths == (SEQUENCE,) * images
    assert prompt.vision.keys() == ({"pixel_values"} if images else set())
    for name, tensor in prompt.vision.items():
        assert torch.equal(tensor, wanted[name])
    assert prompt_lengths([outline_of(row)], gemma, DIRECT) == [len(prompt.input_ids)]
    assert [len(grid.areas) for grid in image_grids([(50, 60)] * images, gemma, DIRECT)] == [SEQUENCE] * images


@pytest.mark.parametrize("token", ["<image_soft_token>", "<start_of_image>", "<end_of_turn>", "<bos>", "<0x0A>"])
def test_a_special_token_spelt_in_a_question_is_text_to_gemma(gemma: Any, token: str) -> None:
    plain = encode_prompt(sample("<image>Say it.", picture()), gemma, DIRECT)
    row = sample(f"<image>Say {token} twice: {token}{token}", picture())
    prompt = encode_prompt(row, gemma, DIRECT)
    special = gemma.tokenizer.convert_tokens_to_ids(token)
    assert prompt.input_ids.tolist().count(special) == plain.input_ids.tolist().count(special)
    assert prompt.image_mask.sum() == SEQUENCE
    assert prompt_lengths([outline_of(row)], gemma, DIRECT) == [len(prompt.input_ids)]


def test_a_special_token_that_is_blank_is_text_too(tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(write_model(tmp_path / "model", GEMMA3))
    processor.tokenizer.add_tokens([AddedToken("\t\t", special=True, normalized=False)])
    special = processor.tokenizer.convert_tokens_to_ids("\t\t")
    assert special in processor.tokenizer("a\t\tb")["input_ids"]
    assert special not in encode_prompt(sample("a\t\tb"), processor, DIRECT).input_ids.tolist()


def test_runs_of_line_ends_are_the_tokens_that_gemma_was_trained_with(gemma: Any) -> None:
    ids = encode_prompt(sample("One\n\nTwo\n\n\nThree"), gemma, DIRECT).input_ids.tolist()
    two, three = gemma.tokenizer.convert_tokens_to_ids(list(LINE_ENDS[:2]))
    assert (ids.count(two), ids.count(three)) == (2, 1)  # one more in front of the instruction
