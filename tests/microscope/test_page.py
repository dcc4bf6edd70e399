"""The page holds everything it needs, and nothing in it can become code."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tests.microscope.made import inspection, page_data
from vgpo_lite.microscope import inspection_page
from vgpo_lite.microscope import page as page_module


def test_the_page_asks_nobody_for_anything() -> None:
    page = inspection_page(inspection())
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, which nothing fetches
    assert "default-src 'none'" in page
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?!data:)", page)


def test_text_of_models_and_data_cannot_become_code() -> None:
    evil = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>"
    page = inspection_page(inspection(question=evil, token=evil, title=evil))
    assert page.count("<script") == 2  # the data and the program
    assert "<img src=x" not in page
    data = page_data(page)
    assert data["title"] == evil
    assert data["prompts"][0]["question"] == evil
    assert data["prompts"][0]["groups"][0]["completions"][0]["tokens"][0] == evil


def test_heat_maps_are_bytes_of_the_brightest_patch() -> None:
    maps = np.array([[0.1, 0.4], [0.0, 0.0]])
    completion = page_data(inspection_page(inspection(maps=maps)))["prompts"][0]["groups"][0]["completions"][0]
    assert list(base64.b64decode(completion["maps"])) == [64, 255, 0, 0]
    assert completion["brightest"] == [0.4, 0.0]


def test_maps_are_made_coarser_until_they_fit_and_lose_no_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = np.arange(2 * 15, dtype=float).reshape(2, 15) / 200
    monkeypatch.setattr(page_module, "MAP_BYTES", 28)  # twice 2 tokens of 3 x 5 cells need 60, of 2 x 3 cells 24
    prompt = page_data(inspection_page(inspection(maps=maps, rows=3, columns=5)))["prompts"][0]
    assert (prompt["images"][0]["rows"], prompt["images"][0]["columns"]) == (2, 3)
    completion = prompt["groups"][0]["completions"][0]
    cells = np.frombuffer(base64.b64decode(completion["maps"]), dtype=np.uint8).reshape(2, 6)
    # The first cell of the second token holds places 0, 1, 5, 6, so 15 + 16 + 20 + 21; the brightest 17, 18, 22, 23.
    assert completion["brightest"][1] == pytest.approx((17 + 18 + 22 + 23) / 200)
    assert cells[1, 0] == pytest.approx(255 * 72 / 80, abs=0.6)


def test_twenty_long_completions_stay_under_fifteen_megabytes() -> None:
    tokens, cells = 600, 512
    noise = torch.rand(tokens, generator=torch.Generator().manual_seed(0))
    many = inspection(
        maps=np.random.default_rng(0).random((tokens, cells)),
        rows=16,
        columns=32,
        values=noise,
        copies=20,
        image=Image.effect_noise((1600, 800), 90).convert("RGB"),
    )
    assert len(inspection_page(many).encode()) < 15_000_000


def test_numbers_are_those_of_the_completion() -> None:
    values = torch.tensor([0.25, 0.123456])
    completion = page_data(inspection_page(inspection(values=values)))["prompts"][0]["groups"][0]["completions"][0]
    assert completion["focus"] == completion["psi"] == completion["advantage"] == [0.25, 0.1235]
    assert completion["ratio"] == pytest.approx(0.123456 / 0.25, abs=1e-4)
    assert json.dumps([completion["reward"], completion["right"]]) == "[0.95, true]"


def test_the_page_names_the_layer_that_the_maps_show_and_no_other() -> None:
    page = inspection_page(inspection())
    assert page_data(page)["focus_layer"] == "layer 30 of 34"
    assert "last layer" not in page


def test_losses_without_the_image_stand_beside_the_focus_they_are_compared_with() -> None:
    plain = page_data(inspection_page(inspection()))
    assert plain["hidden_from"] is None
    assert plain["prompts"][0]["groups"][0]["completions"][0]["agreement"] == {}
    reliance = {
        "painted_over": torch.tensor([2.0, -0.5, 7.12344]),
        "hidden_late": torch.zeros(3),
        "entropy": torch.tensor([3.0, 2.0, 1.0]),
    }
    data = page_data(inspection_page(inspection(maps=np.full((3, 2), 0.1), reliance=reliance)))
    completion = data["prompts"][0]["groups"][0]["completions"][0]
    assert data["hidden_from"] == "the last 7 of 28 layers"
    assert completion["painted_over"] == [2.0, -0.5, 7.1234]
    # Focus rises: ranks 1, 2, 3 against 2, 1, 3 and 3, 2, 1; what is constant has no order.
    assert completion["agreement"] == {"painted_over": 0.5, "hidden_late": None, "entropy": -1.0}
