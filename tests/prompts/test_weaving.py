"""Text between special tokens is read as one stretch, whoever wrote its parts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import AutoProcessor

from tests.hub.models import write_model
from tests.hub.tiled import SMOLVLM2, TILED
from tests.prompts.rows import DIRECT, FACTOR, outline_of, picture, sample
from vgpo_lite.prompts import (
    encode_prompt,
    prompt_lengths,
)
from vgpo_lite.prompts.showing import showing_of

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
