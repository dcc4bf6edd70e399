"""`data check` tells what a run would keep, leave out and show the model, from the processor alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import Outcome
from tests.datasets.pictures import png
from tests.datasets.test_open import GOOD, address, write
from tests.hub.data import GEOMETRY3K, write_dataset
from tests.hub.models import QWEN2_VL, write_model
from tests.hub.server import HubServer
from vgpo_lite.config.load import load_config
from vgpo_lite.data_check import DataCheck, check_data

WIDE, LARGE = address(png(56, 224)), address(png(112, 112))
ROWS: list[dict[str, Any]] = [
    *({"problem": f"How wide is side {row}?", "images": [WIDE], "answer": str(row), "id": row} for row in range(8)),
    {"problem": "Which <image>, or <image>?", "images": [WIDE, LARGE], "answer": "2", "id": 8},
    {"problem": "What is it?", "images": [], "answer": "3", "id": 9},
    {"problem": "What is it?", "images": [WIDE], "answer": "\\boxed{", "id": 10},
    {"problem": "word " * 400, "images": [WIDE], "answer": "5", "id": 11},
]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> DataCheck:
    path = write(tmp_path_factory.mktemp("data") / "a.jsonl", ROWS)
    return check_data(load_config(dataset=str(path), data={"max_prompt_length": 300, "max_bad_rows": 0.2}))


def test_rows_are_counted_and_left_out_by_reason(checked: DataCheck) -> None:
    assert checked.report.dropped == {
        "no image": ("a/train/9",),
        "gold does not grade itself": ("a/train/10",),
        "prompt longer than data.max_prompt_length": ("a/train/11",),
    }
    assert (checked.train + checked.held_out, checked.report.total) == (9, 12)
    assert checked.held_out == 2  # a fifth of the 11 rows that have an image, rounded down
    assert checked.ungradable == (("a/train/10", "\\boxed{"),)
    assert checked.problem is None


def test_columns_are_told_by_what_they_serve_as(checked: DataCheck) -> None:
    assert checked.columns == {
        "problem": "question",
        "images": "image",
        "answer": "answer",
        "id": "passed to your own rewards",
    }


def test_statistics_are_those_of_the_rows_too_long_ones_included(checked: DataCheck) -> None:
    widths = checked.spreads["image width, pixels"]
    assert (widths.least, widths.median, widths.high, widths.most) == (112, 224, 224, 224)
    images = checked.spreads["images per row"]
    assert (images.least, images.median, images.high, images.most) == (1, 1, 2, 2)
    tokens = checked.spreads["image tokens per prompt"]
    assert (tokens.least, tokens.most) == (16, 32)  # 2 x 8 tokens of 28 x 28 pixels, and 4 x 4 more
    assert checked.spreads["tokens per prompt"].most > 300
    assert (checked.images, checked.scaled_down) == (11, 0)


def test_prompts_are_shown_as_the_model_reads_them(checked: DataCheck) -> None:
    first = checked.prompts[0]
    assert len(checked.prompts) == 3
    assert "<|vision_start|>[16 image tokens]<|vision_end|>" in first.text
    assert "<|image_pad|>" not in first.text
    assert f"How wide is side {first.answer}?" in first.text
    assert first.text.endswith("<|im_start|>assistant\n")
    assert len({prompt.sample_id for prompt in checked.prompts}) == 3


def test_a_terminal_reads_the_same_and_a_data_set_train_would_refuse_exits_with_3(
    cli: Callable[..., Outcome], tmp_path: Path
) -> None:
    rows = [*ROWS[:4], {"problem": "?", "images": [WIDE, WIDE], "answer": "1"}, ROWS[9], ROWS[9]]
    shown = cli("data", "check", str(write(tmp_path / "b.jsonl", rows)), "--set", "data.max_pixels=6272")
    assert shown.code == 3
    assert "2 of 7 rows (28.6%) cannot be used, data.max_bad_rows is 5%" in shown.err
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert "left out 2" in lines
    assert "2 x no image: b/train/5 column images is empty" in lines
    assert "image width, pixels 224 224 224 224" in lines
    assert "6 of 6 images do not fit data.max_pixels (6,272) and are shown smaller" in lines
    assert "problem question" in lines


def test_json_is_json_alone_and_no_weights_are_read(
    cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("safetensors.safe_open", refuse)
    monkeypatch.setattr("vgpo_lite.models.loading.load_base", refuse)
    shown = cli("data", "check", str(write(tmp_path / "c.jsonl", ROWS[:7])), "--json")
    told = json.loads(shown.out)
    assert (shown.code, shown.err) == (0, "")
    assert told["rows"] == {"train": 6, "held_out": 1, "left_out": 0}
    assert told["statistics"]["image tokens per prompt"] == {"min": 16, "median": 16.0, "p95": 16, "max": 16}
    assert (told["ungradable"], told["problem"]) == ([], None)
    assert len(told["prompts"]) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("no/such/file.jsonl",), 2, "there is no data set no/such/file.jsonl"),
        (("x.jsonl", "--set", "data.answer_column=gold"), 2, "data.answer_column is gold"),
        (("x.jsonl", "--model", "qwen2-vl-2"), 2, "did you mean qwen2-vl-2b?"),
        (("x.jsonl", "--model", "stand-in/none"), 3, "the hub has no model stand-in/none"),
        (("shapes", "--set", "data.limt=3"), 2, "data.limit"),
    ],
)
def test_what_cannot_be_checked_is_told_with_its_exit_code(
    cli: Callable[..., Outcome], tmp_path: Path, arguments: tuple[str, ...], code: int, told: str
) -> None:
    write(tmp_path / "x.jsonl", [GOOD] * 5)
    shown = cli("data", "check", *arguments)
    assert (shown.code, told in shown.err) == (code, True), shown.err
    assert "Traceback" not in shown.err


def test_a_preset_of_the_hub_is_checked_with_its_models_processor_and_no_weights_are_fetched(
    cli: Callable[..., Outcome], hub: HubServer, tmp_path: Path
) -> None:
    hub.publish("models", QWEN2_VL, write_model(tmp_path / "model", QWEN2_VL))
    commit = hub.publish("datasets", GEOMETRY3K, write_dataset(tmp_path / "set", GEOMETRY3K, rows=12))
    fetched = len(hub.downloads)
    shown = cli("data", "check", "geo3k", "--model", "qwen2-vl-2b", "--json")
    told = json.loads(shown.out)
    assert shown.code == 0
    assert told["notes"][0] == f"data: {GEOMETRY3K} at commit {commit}"
    assert told["columns"] == {"images": "image", "problem": "question", "answer": "answer"}
    assert told["rows"] == {"train": 12, "held_out": 12, "left_out": 0}
    assert told["statistics"]["image tokens per prompt"]["max"] == 4  # 56 x 56 pixels, 28 x 28 to a token
    assert "<|vision_start|>[4 image tokens]<|vision_end|>" in told["prompts"][0]["text"]
    assert not [name for name in hub.downloads[fetched:] if str(name).endswith(".safetensors")]
