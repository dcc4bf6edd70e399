"""Columns are found by their usual names or by those in the recipe; cells mean images and golds, or are refused."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest

from tests.datasets.pictures import png
from vgpo_lite.config.schema import DataConfig
from vgpo_lite.datasets.columns import Folder, gold_answer, image_sources, map_columns
from vgpo_lite.datasets.refusals import FOREIGN_IMAGE, MISSING_IMAGE, NAMED_IMAGE, NO_GOLD, UNDECODABLE, RefusalError
from vgpo_lite.errors import ConfigError


def mapped(found: list[str], *, gold: bool = True, videos: tuple[str, ...] = (), **data: Any) -> tuple[str | None, ...]:
    columns = map_columns(found, DataConfig(**data), needs_gold=gold, video_columns=videos)
    return columns.question, columns.image, columns.answer


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (["problem", "images", "answer"], ("problem", "images", "answer")),
        (["solution", "image", "question"], ("question", "image", "solution")),
        (["prompt", "image", "answer", "solution"], ("prompt", "image", "answer")),
        (["question", "problem", "image", "images", "answer"], ("problem", "images", "answer")),
        (["file_name", "question", "answer"], ("question", "file_name", "answer")),
    ],
)
def test_the_usual_names_are_found(found: list[str], wanted: tuple[str, ...]) -> None:
    assert mapped(found) == wanted


def test_names_in_the_recipe_win() -> None:
    found = ["problem", "query", "image", "decoded_image", "answer", "label"]
    names: dict[str, Any] = {"question_column": "query", "image_column": "decoded_image", "answer_column": "label"}
    assert mapped(found, **names) == ("query", "decoded_image", "label")


@pytest.mark.parametrize(
    ("found", "data", "message"),
    [
        (["Problem", "images", "answer"], {}, "no column problem, question or prompt for the question. "
         "Columns found: Problem, images, answer. Perhaps Problem is meant: data.question_column=Problem."),
        (["problem", "pic", "answer"], {}, "no column images or image for the image. "
         "Columns found: problem, pic, answer. Name one: data.image_column=NAME."),
        (["problem", "images", "answers"], {}, "Perhaps answers is meant: data.answer_column=answers."),
        (["problem", "images", "answer"], {"question_column": "problems"},
         "data.question_column is problems, which the data set does not have. Columns found: problem, images, answer. "
         "Did you mean problem?"),
        (["problem", "images", "answer"], {"choices_column": "options"}, "data.choices_column is options"),
        ([], {}, "Columns found: none"),
        (["problem", "video", "answer"], {}, "column video holds videos; images are expected"),
        (["problem", "clip", "answer"], {"image_column": "clip"}, "column clip holds videos"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_what_is_there(found: list[str], data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        mapped(found, videos=("clip",) if "clip" in found else (), **data)
    assert message in str(error.value)


def test_all_missing_columns_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        mapped(["text", "label"], choices_column="options")
    assert [line.partition(".")[0] for line in str(error.value).splitlines()] == [
        "no column images or image for the image",
        "no column problem, question or prompt for the question",
        "no column answer or solution for the answer",
        "data",
    ]


def test_what_nothing_needs_may_be_missing() -> None:
    assert mapped(["prompt"], gold=False, require_image=False) == ("prompt", None, None)


@pytest.mark.parametrize(
    ("cell", "gold"),
    [
        ("3", "3"), (" 2 \\sqrt { 221 } ", "2 \\sqrt { 221 }"), ("<answer> 3 </answer>", "3"),
        ("<think>4?</think>\n<answer>\n5\n</answer>", "5"), ("<answer>1</answer> or <answer>2</answer>", "2"),
        (3, "3"), (3.0, "3"), (0.5, "0.5"), (-2, "-2"), (True, "True"), (["x"], "x"), (("x",), "x"),
        (None, None), ("", None), ("  \n", None), ("<answer> </answer>", None), (float("nan"), None), ([None], None),
        (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_golds_are_read(cell: object, gold: str | None) -> None:
    assert gold_answer(cell) == gold


@pytest.mark.parametrize("cell", [["a", "b"], [], {"value": 3}, b"3", object()])
def test_golds_that_are_no_single_value_are_refused(cell: object) -> None:
    with pytest.raises(RefusalError, match=NO_GOLD):
        gold_answer(cell)


def test_images_of_a_cell_come_in_order() -> None:
    first, second = png(1, 1), png(2, 2)
    address = "data:image/png;base64," + base64.b64encode(second).decode()
    cell = [{"bytes": first, "path": "first.png"}, None, address, bytearray(first)]
    assert image_sources(cell, None) == [first, second, first]
    assert image_sources(None, None) == image_sources([""], None) == []


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("cat.png", NAMED_IMAGE),
        ("/etc/passwd", NAMED_IMAGE),
        ("https://example.org/cat.png", NAMED_IMAGE),
        ({"bytes": None, "path": "/etc/passwd"}, NAMED_IMAGE),
        ([{"bytes": None, "path": "https://example.org/cat.png"}], NAMED_IMAGE),
        (base64.b64encode(b"x" * 99).decode(), NAMED_IMAGE),
        ("data:image/png;base64,not*base64", UNDECODABLE),
        ("data:text/html;base64,aGk=", NAMED_IMAGE),
        (7, UNDECODABLE),
        ([1.5], UNDECODABLE),
    ],
)
def test_images_that_a_row_does_not_hold_are_refused(cell: object, reason: str) -> None:
    with pytest.raises(RefusalError) as refusal:
        image_sources(cell, None)
    assert refusal.value.reason == reason


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    inside = tmp_path / "set"
    (inside / "sub").mkdir(parents=True)
    (inside / "a.png").write_bytes(png())
    (inside / "sub" / "ä b.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png())
    (inside / "link_out.png").symlink_to(tmp_path / "secret.png")
    (inside / "link_in.png").symlink_to(inside / "a.png")
    (inside / "up").symlink_to(tmp_path)
    (inside / "circle").symlink_to(inside / "circle")
    os.mkfifo(inside / "pipe")
    return Folder(path=inside, boundary=inside)


@pytest.mark.parametrize("name", ["a.png", "./a.png", "sub/ä b.png", "link_in.png"])
def test_a_local_row_may_name_files_of_its_folder(folder: Folder, name: str) -> None:
    (source,) = image_sources(name, folder)
    assert isinstance(source, Path)
    assert source.read_bytes() == png()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../secret.png", FOREIGN_IMAGE),
        ("sub/../../secret.png", FOREIGN_IMAGE),
        ("sub/../a.png", FOREIGN_IMAGE),
        ("..\\secret.png", FOREIGN_IMAGE),
        ("C:\\secret.png", FOREIGN_IMAGE),
        ("/etc/passwd", FOREIGN_IMAGE),
        ("//server/share.png", FOREIGN_IMAGE),
        ("file:///etc/passwd", FOREIGN_IMAGE),
        ("https://example.org/cat.png", FOREIGN_IMAGE),
        ("link_out.png", FOREIGN_IMAGE),
        ("up/secret.png", FOREIGN_IMAGE),
        ("a.png\0", FOREIGN_IMAGE),
        ("gone.png", MISSING_IMAGE),
        ("sub", MISSING_IMAGE),
        ("pipe", MISSING_IMAGE),
        ("circle", MISSING_IMAGE),
        ("x" * 5000, MISSING_IMAGE),
        (".", MISSING_IMAGE),
    ],
)
def test_a_local_row_leads_nowhere_else(folder: Folder, name: str, reason: str) -> None:
    with pytest.raises(RefusalError) as refusal:
        image_sources({"path": name}, folder)
    assert refusal.value.reason == reason


def test_an_absolute_path_into_the_folder_is_refused_too(folder: Folder) -> None:
    with pytest.raises(RefusalError, match=FOREIGN_IMAGE):
        image_sources(str(folder.path / "a.png"), folder)


def test_links_may_lead_as_far_as_the_boundary(folder: Folder) -> None:
    wider = Folder(path=folder.path, boundary=folder.path.parent)
    assert image_sources("link_out.png", wider) == [folder.path.parent / "secret.png"]
