"""Text between special tokens is read as one stretch, whoever wrote its parts."""

from __future__ import annotations

import gc
import json
from typing import TYPE_CHECKING, Any
from weakref import ref

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor

from tests.hub.models import QWEN2_VL, write_model
from tests.hub.tiled import SMOLVLM2, TILED
from tests.prompts.rows import DIRECT, FACTOR, outline_of, picture, sample
from vgpo_lite.prompts import encode_prompt, largest_prompt, prompt_lengths, prompts_fit
from vgpo_lite.prompts.lengths import _Lengths
from vgpo_lite.prompts.showing import showing_of

if TYPE_CHECKING:
    from pathlib import Path

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


STRANGE = [
    "\U0001f600" * 9,
    "数" * 30,
    "é",
    " ",
    "\n",
    "\x1c",
    "plain words ",
    "<|im_end|>",
    "a\u0301",
    "\ue0000\ue001",
]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(STRANGE), max_size=8).map("".join), st.text(max_size=30))
def test_no_prompt_is_longer_than_its_bound_and_the_limit_is_exact(joining: Any, text: str, more: str) -> None:
    question = (text + more).replace("<image>", "") + "<image>"
    outline = outline_of(sample(question, picture()))
    [length] = prompt_lengths([outline], joining, DIRECT)
    assert len(encode_prompt(sample(question, picture()), joining, DIRECT).input_ids) == length
    assert _Lengths(joining, DIRECT).most(outline) >= length
    for limit, fits in ((length, True), (length - 1, False)):
        assert prompts_fit([outline], joining, DIRECT.model_copy(update={"max_prompt_length": limit})) == [fits]


def test_prompts_that_are_too_long_are_no_largest_ones(joining: Any) -> None:
    outlines = [outline_of(sample("<image>How?" + "数" * count, picture())) for count in (2, 60, 5)]
    lengths = prompt_lengths(outlines, joining, DIRECT)
    limited = DIRECT.model_copy(update={"max_prompt_length": lengths[1] - 1})
    assert largest_prompt(outlines, joining, limited).tokens == lengths[2]
    assert largest_prompt(outlines, joining, DIRECT).tokens == lengths[1]


def test_what_is_known_of_a_processor_goes_with_it_and_follows_its_vocabulary(tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(write_model(tmp_path / "model", QWEN2_VL))
    row = sample("a helpful assistant?")
    before = encode_prompt(row, processor, DIRECT).input_ids.tolist()
    assert prompt_lengths([outline_of(row)], processor, DIRECT) == [len(before)]
    processor.tokenizer.add_tokens(["helpful assist"], special_tokens=True)
    after = encode_prompt(row, processor, DIRECT).input_ids.tolist()
    added = processor.tokenizer.convert_tokens_to_ids("helpful assist")
    assert after.count(added) == 1  # in the template's own turn of the system; the question's stays text
    assert added not in before
    assert prompt_lengths([outline_of(row)], processor, DIRECT) == [len(after)] != [len(before)]
    gone = ref(processor)
    del processor
    gc.collect()
    assert gone() is None
