"""Small processors of the real classes, and none of their models."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoProcessor

from tests.hub.gemma import GEMMA3
from tests.hub.models import QWEN3_VL, write_model
from tests.prompts.rows import FACTOR


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


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gemma 3's real processor over a small vocabulary."""
    return AutoProcessor.from_pretrained(write_model(tmp_path_factory.mktemp("model"), GEMMA3))
