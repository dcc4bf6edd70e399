"""Parquet, JSON lines and image folders open as rows; what cannot be read is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value, Video

from tests.datasets.pictures import corner_pixels, png
from vgpo_lite.config.schema import DataConfig, RunConfig
from vgpo_lite.datasets import DataSplit, open_rows
from vgpo_lite.errors import ConfigError, DataError


def opened(path: Path, **data: Any) -> DataSplit:
    return open_rows(RunConfig(dataset=str(path), data=DataConfig(**data)))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def image_rows(count: int, folder: Path) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    for row in range(count):
        (folder / f"{row}.png").write_bytes(png(10 + row, 20))
    return [{"image": f"{row}.png", "question": f"Row {row}?", "answer": row} for row in range(count)]


def heights(split: DataSplit) -> list[int]:
    return sorted(row.images[0].height for rows in (split.train, split.held_out) for row in rows)


def write_parquet(path: Path, rows: list[dict[str, Any]], features: Features | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=features).to_parquet(path)
    return path


def parquet_rows(count: int) -> list[dict[str, Any]]:
    return [{"problem": f"Row {row}?", "images": [png(10 + row, 20)], "answer": str(row)} for row in range(count)]


LISTED = Features({"problem": Value("string"), "images": List(Image()), "answer": Value("string")})


def test_json_lines_name_images_beside_them(tmp_path: Path) -> None:
    split = opened(write_lines(tmp_path / "questions.jsonl", image_rows(10, tmp_path)))
    assert heights(split) == list(range(10, 20))
    sample = split.train[0]
    row = int(sample.sample_id.rpartition("/")[2])
    assert sample.sample_id == f"questions/train/{row}"
    assert (sample.question, sample.answer) == (f"<image>Row {row}?", str(row))
    assert np.array_equal(np.asarray(sample.images[0]), corner_pixels(10 + row, 20))
    assert sample.columns == {"question": f"Row {row}?", "answer": row, "solution": str(row)}


def test_an_array_of_json_objects_opens_like_lines(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(image_rows(5, tmp_path), indent=2))
    assert heights(opened(tmp_path / "rows.json")) == list(range(10, 15))


def test_json_lines_may_begin_with_a_byte_order_mark_and_end_without_a_newline(tmp_path: Path) -> None:
    lines = "\ufeff" + "\n\n".join(json.dumps(row) for row in image_rows(5, tmp_path))
    (tmp_path / "rows.jsonl").write_text(lines)
    assert heights(opened(tmp_path / "rows.jsonl")) == list(range(10, 15))


@pytest.mark.parametrize("metadata", ["metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("column", ["file_name", "image"])
def test_an_image_folder_opens_by_its_metadata(tmp_path: Path, metadata: str, column: str) -> None:
    rows = image_rows(5, tmp_path)
    if metadata.endswith("csv"):
        lines = [f'{row["image"]},"{row["question"]}",{row["answer"]}' for row in rows]
        (tmp_path / metadata).write_text("\n".join([f"{column},question,answer", *lines]))
    else:
        write_lines(tmp_path / metadata, [{column: row.pop("image")} | row for row in rows])
    split = opened(tmp_path)
    assert heights(split) == list(range(10, 15))
    assert split.held_out[0].sample_id.startswith(f"{tmp_path.name}/train/")


def test_subfolders_of_an_image_folder_are_splits(tmp_path: Path) -> None:
    for split, count in (("train", 5), ("exam", 3)):
        write_lines(tmp_path / split / "metadata.jsonl", image_rows(count, tmp_path / split))
    split = opened(tmp_path, eval_split="exam")
    assert (len(split.train), len(split.held_out)) == (5, 3)


@pytest.mark.parametrize("features", [LISTED, None], ids=["images", "plain bytes"])
def test_parquet_holds_its_images(tmp_path: Path, features: Features | None) -> None:
    split = opened(write_parquet(tmp_path / "a.parquet", parquet_rows(10), features))
    assert heights(split) == list(range(10, 20))
    assert split.train[0].columns.keys() == {"problem", "answer", "solution"}


def test_parquet_written_without_the_datasets_library_opens_too(tmp_path: Path) -> None:
    table = pa.table({"question": ["How many?"] * 5, "image": [png(8, 9)] * 5, "answer": pa.array([1, 2, 3, 4, 5])})
    pyarrow.parquet.write_table(table, tmp_path / "plain.parquet")
    split = opened(tmp_path / "plain.parquet")
    assert heights(split) == [8] * 5
    assert {row.answer for rows in (split.train, split.held_out) for row in rows} == set("12345")


def test_parquet_shards_and_splits_are_grouped_by_name(tmp_path: Path) -> None:
    rows = parquet_rows(10)
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", rows[:4], LISTED)
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", rows[4:7], LISTED)
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows[7:], LISTED)
    split = opened(tmp_path, eval_split="test")
    assert sorted(row.images[0].height for row in split.train) == list(range(10, 17))
    assert sorted(row.images[0].height for row in split.held_out) == [17, 18, 19]


def test_names_with_wildcards_are_names(tmp_path: Path) -> None:
    split = opened(write_parquet(tmp_path / "set [v1]*" / "all.parquet", parquet_rows(5), LISTED))
    assert heights(split) == list(range(10, 15))


def test_the_names_of_classes_are_the_golds(tmp_path: Path) -> None:
    kinds = ClassLabel(names=["cat", "dog"])
    features = Features({"question": Value("string"), "image": Image(), "answer": kinds})
    rows = [{"question": "Which?", "image": png(), "answer": row % 2} for row in range(6)]
    split = opened(write_parquet(tmp_path / "a.parquet", rows, features))
    assert {row.answer for row in split.train} == {"cat", "dog"}


def test_paths_inside_parquet_rows_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    rows = [{"problem": "Find x.", "images": [{"bytes": None, "path": str(tmp_path / "a.png")}], "answer": "1"}] * 5
    write_parquet(tmp_path / "a.parquet", rows)
    with pytest.raises(DataError, match=r"5 of 5 rows .* none is left:\n  5 x image is named, not held: a/train/0"):
        opened(tmp_path / "a.parquet")


def test_a_column_of_videos_is_refused(tmp_path: Path) -> None:
    features = Features({"question": Value("string"), "clip": Video(decode=False), "answer": Value("string")})
    rows = [{"question": "What?", "clip": {"bytes": b"mp4", "path": None}, "answer": "1"}] * 3
    path = write_parquet(tmp_path / "a.parquet", rows, features)
    with pytest.raises(ConfigError, match="column clip holds videos"):
        opened(path, image_column="clip")
    with pytest.raises(ConfigError, match="column clip holds videos; images are expected"):
        opened(path)


def test_other_columns_pass_through_without_their_media(tmp_path: Path) -> None:
    extra = {"level": 3, "tags": ["a", "b"], "source": {"book": "x"}, "mask": png(), "views": [{"bytes": png()}]}
    rows = [row | extra for row in parquet_rows(5)]
    sample = opened(write_parquet(tmp_path / "a.parquet", rows)).train[0]
    wanted = {
        "level": 3,
        "tags": ["a", "b"],
        "source": {"book": "x"},
        "answer": sample.answer,
        "solution": sample.answer,
    }
    assert sample.columns == wanted | {"problem": sample.question.removeprefix("<image>")}


BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "broken line": ("a.jsonl", b'{"question": "a"}\n{"question": \n', "a.jsonl:2 is no JSON"),
    "not an object": ("a.jsonl", b'{"question": "a"}\n\n[1]\n', "a.jsonl:3 holds a list, expected an object"),
    "array of numbers": ("a.json", b"[1, 2]", "a.json, entry 0 holds a int"),
    "deep nesting": ("a.jsonl", b"[" * 100_000, "is no JSON"),
    "not utf-8": ("a.jsonl", b'{"question": "\xff"}', "a.jsonl is not UTF-8 text: invalid start byte at byte 14"),
    "empty lines": ("a.jsonl", b"\n\n", "a.jsonl: no rows"),
    "bad csv": ("a.csv", b'question,image\n"a', "a.csv is no CSV"),
    "bad parquet": ("a.parquet", b"PAR1 and then nothing", "a.parquet cannot be read as parquet"),
    "empty parquet": ("a.parquet", b"", "a.parquet cannot be read as parquet"),
    "unknown kind": ("a.xlsx", b"PK", "a.xlsx: expected .parquet, .jsonl, or a folder"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((DataError, ConfigError)) as error:
        opened(tmp_path / name)
    assert message in str(error.value)


def test_a_folder_without_data_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(DataError, match=r"images with a metadata.jsonl or metadata.csv; it holds a.png"):
        opened(tmp_path)
    (tmp_path / "data.arrow").write_bytes(b"")
    with pytest.raises(DataError, match="written by save_to_disk; write parquet instead"):
        opened(tmp_path)


def test_a_path_that_does_not_exist_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "question.jsonl").write_text("")
    with pytest.raises(DataError, match=r"there is no file or folder .*questions.jsonl. Did you mean .*question.jsonl"):
        opened(tmp_path / "questions.jsonl")


def test_a_split_that_does_not_exist_names_those_that_do(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_parquet(tmp_path / f"{name}.parquet", parquet_rows(5), LISTED)
    with pytest.raises(ConfigError, match=r"data.eval_split is tests; .* has test, train. Did you mean test\?"):
        opened(tmp_path, eval_split="tests")
    with pytest.raises(ConfigError, match=r"data\.split is dev; "):
        opened(tmp_path, split="dev")


def test_one_file_answers_to_any_training_split_but_has_none_for_measuring(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", parquet_rows(5), LISTED)
    assert opened(path, split="dev").train[0].sample_id.startswith("a/dev/")
    with pytest.raises(ConfigError, match=r"data\.eval_split is test; .* has train"):
        opened(path, eval_split="test")
