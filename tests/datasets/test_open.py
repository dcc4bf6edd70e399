"""Data sets are checked row by row, and split in a way that only their content decides."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.datasets.pictures import encoded, hollow_png, png
from tests.datasets.test_images import NOISE
from vgpo_lite.config.schema import DataConfig, EvalConfig, RewardConfig, RunConfig
from vgpo_lite.datasets import DataReport, DataSplit, Rows, open_rows, refuse_if_too_bad
from vgpo_lite.datasets.checks import checked_rows
from vgpo_lite.datasets.columns import map_columns
from vgpo_lite.datasets.rows import TableSource
from vgpo_lite.datasets.tables import RecordTable
from vgpo_lite.errors import ConfigError, DataError


def address(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


GOOD: dict[str, Any] = {"problem": "Find x.", "images": [address(png())], "answer": "3"}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def numbered(count: int) -> list[dict[str, Any]]:
    return [GOOD | {"problem": f"Row {row}?"} for row in range(count)]


def opened(path: Path, *, held_out: int = 200, purpose: Any = "train", progress: Any = None, **data: Any) -> DataSplit:
    config = RunConfig(dataset=str(path), data=DataConfig(**data), eval=EvalConfig(held_out=held_out))
    return open_rows(config, purpose=purpose, progress=progress)


BAD_ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no images": ({"images": []}, "no image", "column images is empty"),
    "null images": ({"images": None}, "no image", "column images is empty"),
    "absent images": ({"images": [None]}, "no image", "column images is empty"),
    "too many marks": ({"problem": "<image><image>?"}, "marks and images do not match", "2 marks for 1 images"),
    "too few marks": ({"problem": "<image>?", "images": [address(png())] * 3}, "marks and images do not match", "for "),
    "no bytes": ({"images": [address(b"")]}, "undecodable image", "0 bytes"),
    "text for an image": ({"images": [address(b"cat")]}, "undecodable image", "no image of a known format"),
    "number for an image": ({"images": 3}, "undecodable image", "the image is a int"),
    "broken base64": ({"images": address(png())[:-1]}, "undecodable image", "not base64"),
    "truncated image": ({"images": [address(encoded(NOISE)[:-500])]}, "undecodable image", "truncated"),
    "one bad of two": ({"images": [address(png()), address(b"cat")]}, "undecodable image", "of a known format"),
    "60 megapixels": ({"images": [address(hollow_png(10_000, 6_000))]}, "too many pixels", "10000 x 6000"),
    "a thread": ({"images": [address(hollow_png(1, 101))]}, "aspect ratio", "1 x 101"),
    "an address": ({"images": ["https://example.org/cat.png"]}, "image outside the folder", "expected a name relative"),
    "a path": ({"images": ["/etc/passwd"]}, "image outside the folder", "'/etc/passwd'"),
    "a climbing path": ({"images": ["../cat.png"]}, "image outside the folder", "'../cat.png'"),
    "a file that is not there": ({"images": ["cat.png"]}, "image file missing", "'cat.png'"),
    "no answer": ({"answer": None}, "no gold", "no answer that can be right"),
    "blank answer": ({"answer": "  "}, "no gold", "no answer that can be right"),
    "empty answer tag": ({"answer": "<answer> </answer>"}, "no gold", "no answer that can be right"),
    "two answers": ({"answer": ["1", "2"]}, "no gold", "the answer is a list"),
    "not a number": ({"answer": float("nan")}, "no gold", "no answer that can be right"),
    "no question": ({"problem": None}, "empty question", "the question is absent"),
    "blank question": ({"problem": " \n"}, "empty question", "holds no text"),
    "question of marks": ({"problem": "<image>"}, "empty question", "holds no text"),
    "question in messages": ({"problem": [{"role": "user"}]}, "empty question", "the question is a list"),
    "half a character": ({"problem": "x \ud800"}, "empty question", "a lone surrogate"),
    "gold of half a character": ({"answer": "\udfff"}, "no gold", "a lone surrogate"),
    "video mark": ({"problem": "<video>What happens?"}, "video", "<video> mark"),
    "video beside": ({"video": "clip.mp4"}, "video", "the row holds a video"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "reason", "detail"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_left_out_and_counted(tmp_path: Path, change: dict[str, Any], reason: str, detail: str) -> None:
    rows = [*numbered(4), GOOD | change, *numbered(5)]
    split = opened(write(tmp_path / "a.jsonl", rows), max_bad_rows=0.1, held_out=0)
    assert [row.sample_id for row in split.train] == [f"a/train/{row}" for row in (0, 1, 2, 3, 5, 6, 7, 8, 9)]
    assert split.report.dropped == {reason: ("a/train/4",)}
    assert detail in split.report.examples[reason]
    assert (split.report.kept, split.report.total) == (9, 10)


def test_too_many_bad_rows_stop_the_run_with_counts_and_examples(tmp_path: Path) -> None:
    rows = [*numbered(17), GOOD | {"images": []}, GOOD | {"answer": None}, GOOD | {"images": []}]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError) as error:
        opened(path)
    assert str(error.value) == (
        "3 of 20 rows (15.0%) cannot be used, data.max_bad_rows is 5%; repair them, or allow more with "
        "data.max_bad_rows:\n"
        "  2 x no image: a/train/17 column images is empty\n"
        "  1 x no gold: a/train/18 column answer holds None, no answer that can be right"
    )
    assert error.value.exit_code == 3
    assert opened(path, max_bad_rows=0.15).report.kept == 17


def test_a_data_set_without_one_good_row_is_refused_whatever_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 1 rows .* none is left"):
        opened(write(tmp_path / "a.jsonl", [GOOD | {"images": []}]), max_bad_rows=1.0)


def test_rows_without_images_train_where_none_is_asked_for(tmp_path: Path) -> None:
    rows = [{"problem": "1 + 1?", "answer": 2}, {"problem": "2 + 2?", "answer": 4, "images": None}]
    split = opened(write(tmp_path / "a.jsonl", rows), require_image=False)
    assert [(row.question, row.images) for row in split.train] == [("1 + 1?", ()), ("2 + 2?", ())]


def test_rows_without_golds_train_where_only_a_users_reward_judges(tmp_path: Path) -> None:
    rows = [{name: value for name, value in GOOD.items() if name != "answer"}] * 3
    path = write(tmp_path / "a.jsonl", rows)
    config = RunConfig(dataset=str(path), reward=RewardConfig(functions={"mine.py:reward": 1.0}))
    assert [row.answer for row in open_rows(config).train] == [None] * 3


def test_images_follow_their_numbered_marks(tmp_path: Path) -> None:
    images = [address(png(10, 10)), address(png(20, 20))]
    rows = [GOOD | {"problem": "Is <image_2> above <image_1>?", "images": images}] * 5
    split = opened(write(tmp_path / "a.jsonl", rows))
    assert [image.height for image in split.train[0].images] == [20, 10]
    assert split.train.outline(0).image_sizes == ((20, 20), (10, 10))


def test_multiple_choice_rows_are_lettered(tmp_path: Path) -> None:
    rows = [GOOD | {"answer": "cat", "options": ["dog", "cat"]}, GOOD | {"options": None}, GOOD | {"options": []}]
    split = opened(write(tmp_path / "a.jsonl", rows), choices_column="options", held_out=0)
    assert [row.answer for row in split.train] == ["B", "3", "3"]
    assert split.train[0].question == "<image>Find x.\n(A) dog\n(B) cat\nAnswer with the letter."


def ids(rows: Rows) -> set[str]:
    return {outline.sample_id for outline in rows.outlines()}


def test_held_out_rows_are_the_same_in_every_run_and_never_train(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", numbered(50))
    first, again = opened(path, held_out=7), opened(path, held_out=7)
    assert [row.sample_id for row in first.held_out] == [row.sample_id for row in again.held_out]
    assert len(first.held_out) == 7
    assert not ids(first.held_out) & ids(first.train)
    assert len(first.train) == 43
    config = RunConfig(dataset=str(path), seed=9, eval=EvalConfig(held_out=7))
    assert ids(open_rows(config).held_out) == ids(first.held_out)


def test_held_out_rows_are_spread_and_grow_by_whole_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", numbered(50))
    few, more = opened(path, held_out=5), opened(path, held_out=10)
    assert ids(few.held_out) < ids(more.held_out)
    assert more.held_out.indices.tolist() != sorted(more.held_out.indices.tolist())
    assert more.held_out.indices.max() > 25 > more.held_out.indices.min()


def test_at_most_a_fifth_is_held_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", numbered(14))
    assert len(opened(path, held_out=200).held_out) == 2
    assert len(opened(path, held_out=0).held_out) == 0
    assert len(opened(write(tmp_path / "b.jsonl", numbered(4))).held_out) == 0


def test_a_limit_takes_the_first_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*numbered(10), GOOD | {"images": []}])
    split = opened(path, limit=10)
    assert ids(split.train) | ids(split.held_out) == {f"a/train/{row}" for row in range(10)}
    assert split.report.total == 10


def evaluation_set(path: Path) -> Path:
    path.mkdir()
    write(path / "train.jsonl", numbered(10))
    write(path / "test.jsonl", numbered(6))
    return path


def test_only_measuring_leaves_the_training_split_closed(tmp_path: Path) -> None:
    path = evaluation_set(tmp_path / "set")
    (path / "train.jsonl").write_text("no JSON\n")
    split = opened(path, purpose="measure", eval_split="test")
    assert (len(split.train), len(split.held_out), split.report.total) == (0, 6, 6)


def test_an_evaluation_set_is_measured_whole_and_warns_when_trained_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", numbered(10))
    measured = opened(path, purpose="measure", evaluation_only=True)
    assert (len(measured.train), len(measured.held_out)) == (0, 10)
    assert not any("evaluation set" in note for note in measured.notes)
    trained = opened(path, evaluation_only=True)
    assert (len(trained.train), len(trained.held_out)) == (8, 2)
    assert any("a.jsonl is an evaluation set" in note for note in trained.notes)


def test_columns_known_from_descriptions_only_are_noted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", numbered(5))
    assert any("known from descriptions" in note for note in opened(path, columns_verified=False).notes)
    assert opened(path).notes == (f"data: {path}",)


def test_the_fingerprint_tells_contents_and_choices_apart_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", numbered(10))
    split = opened(path, held_out=2)
    (tmp_path / "elsewhere").mkdir()
    moved = write(tmp_path / "elsewhere" / "b.jsonl", numbered(10))
    assert opened(moved, held_out=2).train.fingerprint == split.train.fingerprint
    others = {
        "held out": split.held_out,
        "fewer": split.train.keep([0, 1]),
        "order": split.train.keep(range(7, -1, -1)),
        "one row more": opened(write(tmp_path / "c.jsonl", numbered(11)), held_out=2).train,
        "another gold": opened(write(tmp_path / "d.jsonl", [*numbered(9), GOOD | {"answer": 4}]), held_out=2).train,
        "another column": opened(path, held_out=2, answer_column="problem").train,
    }
    prints = [rows.fingerprint for rows in others.values()]
    assert len({split.train.fingerprint, *prints}) == len(others) + 1


def test_rows_are_indexed_like_a_sequence(tmp_path: Path) -> None:
    rows = opened(write(tmp_path / "a.jsonl", numbered(10)), held_out=0).train
    assert rows[-1].sample_id == "a/train/9"
    assert [row.sample_id for row in rows.keep([3, 1])] == ["a/train/3", "a/train/1"]
    with pytest.raises(IndexError):
        rows[10]


def test_an_image_that_is_damaged_behind_its_header_names_its_row_when_decoded(tmp_path: Path) -> None:
    content = bytearray(encoded(NOISE))
    content[len(content) // 2] ^= 0xFF
    rows = opened(write(tmp_path / "a.jsonl", [*numbered(2), GOOD | {"images": address(bytes(content))}])).train
    with pytest.raises(DataError, match=r"a/train/2 cannot be used: undecodable image: .*; leave it out, or repair"):
        rows[2]


def test_a_file_that_is_gone_after_the_check_names_its_row(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png())
    rows = opened(write(tmp_path / "a.jsonl", [GOOD | {"images": "x.png"}])).train
    (tmp_path / "x.png").unlink()
    assert rows.outline(0).image_sizes == ((16, 24),)
    with pytest.raises(DataError, match="a/train/0 cannot be used: image file missing"):
        rows[0]


def test_progress_is_told_while_rows_are_checked(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    opened(write(tmp_path / "a.jsonl", numbered(1001)), progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 1001), (1000, 1001)]


def test_reports_add_up() -> None:
    report = DataReport(kept=8, dropped={"no image": ("a",)}, examples={"no image": "empty"})
    later = report.dropping("prompt too long", ["b", "c"], "5,000 tokens").dropping("no gold", [])
    assert (later.kept, later.total) == (6, 9)
    assert later.counts == {"prompt too long": 2, "no image": 1}
    assert later.in_words() == "  2 x prompt too long: b 5,000 tokens\n  1 x no image: a empty"
    both = later.joined(DataReport(kept=3, dropped={"no image": ("d",)}, examples={"no image": "other"}))
    assert (both.kept, both.total, both.dropped["no image"]) == (9, 13, ("a", "d"))
    assert both.examples["no image"] == "empty"


def test_reasons_that_count_apart_do_not_stop_a_run() -> None:
    report = DataReport(kept=5, dropped={"gold does not grade itself": ("a",) * 5})
    with pytest.raises(DataError, match="5 of 10 rows"):
        refuse_if_too_bad(report, max_bad_rows=0.05)
    refuse_if_too_bad(report, max_bad_rows=0.05, apart=("gold does not grade itself",))
    with pytest.raises(DataError, match="no rows"):
        refuse_if_too_bad(DataReport(kept=0), max_bad_rows=1.0)


def test_the_built_in_shapes_open_without_a_file() -> None:
    split = open_rows(RunConfig())
    assert len(split.train) > 1000
    assert len(split.held_out) >= 200
    for rows in (split.train, split.held_out):
        sample, outline = rows[3], rows.outline(3)
        assert (sample.sample_id, sample.question, sample.answer) == (
            outline.sample_id,
            outline.question,
            outline.answer,
        )
        assert outline.image_sizes == tuple((image.height, image.width) for image in sample.images)
    assert split.train.fingerprint != split.held_out.fingerprint
    assert len(open_rows(RunConfig(data=DataConfig(limit=50))).train) == 50


CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.binary(max_size=40)
    | st.sampled_from(["<image>", "<image1>x", "<answer>3</answer>", "../a", "\ud800", address(png()), png(), b"GIF"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["bytes", "path", "other"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
ROWS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("problem", "images", "answer", "options", "video", "extra"), CELLS)
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ROWS, min_size=1, max_size=3), st.booleans(), st.booleans())
def test_no_row_whatever_it_holds_raises_anything_but_a_refusal(
    records: list[dict[str, object]], needs_image: bool, needs_gold: bool
) -> None:
    table = RecordTable([{"problem": None, "images": None, "answer": None, "options": None, "video": None}, *records])
    data = DataConfig(choices_column="options", require_image=needs_image)
    columns = map_columns(table.columns, data, needs_gold=needs_gold, video_columns=())
    source = TableSource(
        name="any", fingerprint="any", table=table, columns=columns, folder=None,
        needs_image=needs_image, needs_gold=needs_gold,
    )  # fmt: skip
    rows, report = checked_rows(source)
    assert report.total == len(table)
    assert len(rows) == report.kept
    for index, outline in enumerate(rows.outlines()):
        sample = rows[index]
        assert sample.question == outline.question
        assert sample.question.count("<image>") == len(sample.images)
        assert all(image.mode == "RGB" for image in sample.images)
        assert sample.answer is not None or not needs_gold
        assert sample.images or not needs_image


CONTENT = st.binary(max_size=60) | st.lists(
    st.sampled_from([
        '{"problem": "Who?", "images": [], "answer": "3"}', '{"problem": 3}', "{", "}", "[", "]", '"', ",", "\n", "\r",
        "problem,images,answer", "Who?,x.png,3", "NaN", "-Infinity", "1e999", "9" * 5000, '"\\ud800"', "\ufeff", "null",
        "[" * 3000,
    ]),
    max_size=8,
).map(lambda pieces: "".join(pieces).encode())  # fmt: skip


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CONTENT, st.sampled_from(["my.jsonl", "my.json", "my.csv", "my.parquet"]))
def test_no_file_whatever_it_holds_raises_anything_but_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    path = tmp_path_factory.mktemp("data") / name
    path.write_bytes(content)
    try:
        split = opened(path, require_image=False, max_bad_rows=1.0)
    except (ConfigError, DataError):
        return
    assert len(split.train) + len(split.held_out) == split.report.kept > 0
