"""Data sets come from the hub at a commit, by name; what the hub refuses is said in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.datasets.pictures import png
from tests.datasets.test_local import LISTED, image_rows, parquet_rows, write_lines, write_parquet
from tests.hub.data import CLEVR_COUNT, GEOMETRY3K, GEOQA, MATHVISTA, MMK12, VIRL39K, write_dataset
from vgpo_lite.config.load import load_config
from vgpo_lite.config.recipes import recipe_names
from vgpo_lite.datasets import DataSplit, open_rows
from vgpo_lite.errors import ConfigError, DataError, StorageError

if TYPE_CHECKING:
    from tests.hub.server import HubServer

PRESETS = {
    "geo3k": GEOMETRY3K,
    "virl39k": VIRL39K,
    "mmk12": MMK12,
    "clevr-count": CLEVR_COUNT,
    "geoqa": GEOQA,
    "mathvista": MATHVISTA,
}


def opened(dataset: str, *, purpose: Any = "train", **data: Any) -> DataSplit:
    return open_rows(load_config(dataset=dataset, data=data), purpose=purpose)


def publish(hub: HubServer, folder: Path, name: str, *, rows: int = 6, revision: str = "main") -> str:
    """A data set of numbered rows; returns its commit."""
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", parquet_rows(rows), LISTED)
    return hub.publish("datasets", name, folder, revision=revision)


def test_every_preset_but_the_built_in_one_is_tested_here() -> None:
    assert set(recipe_names("datasets")) - {"shapes"} == set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_opens_with_every_row_usable(hub: HubServer, tmp_path: Path, preset: str) -> None:
    commit = hub.publish("datasets", PRESETS[preset], write_dataset(tmp_path / "set", PRESETS[preset], rows=20))
    split = opened(preset)
    assert split.report.counts == {}
    assert split.notes[0] == f"data: {PRESETS[preset]} at commit {commit}"
    for rows in (split.train, split.held_out):
        sample = rows[0]
        name, split_name, row = sample.sample_id.split("/")
        assert (name, sample.answer) == (preset, str(1 + int(row) % 4))  # the stand-in's answers count 1, 2, 3, 4
        assert sample.question.startswith("<image>")
        assert sample.question.endswith("How many red squares are there?")
        assert [image.size for image in sample.images] == [(56, 56)]
        assert sample.columns["answer"] == sample.answer
        assert split_name in ("train", "test", "testmini")
    measured_apart = preset == "geo3k"
    assert (len(split.train), len(split.held_out)) == ((20, 20) if measured_apart else (16, 4))


@pytest.mark.parametrize("preset", ["mmk12", "mathvista"])
def test_evaluation_sets_warn_when_trained_on_and_are_measured_whole(
    hub: HubServer, tmp_path: Path, preset: str
) -> None:
    hub.publish("datasets", PRESETS[preset], write_dataset(tmp_path / "set", PRESETS[preset], rows=10))
    assert any(note.startswith(f"{preset} is an evaluation set") for note in opened(preset).notes)
    measured = opened(preset, purpose="measure")
    assert (len(measured.train), len(measured.held_out)) == (0, 10)


def test_the_only_split_of_an_evaluation_set_is_taken_whatever_its_name(hub: HubServer, tmp_path: Path) -> None:
    hub.publish("datasets", MMK12, write_dataset(tmp_path / "set", MMK12, rows=5))
    split = opened("mmk12", split="dev")
    assert split.train[0].sample_id.startswith("mmk12/test/")
    assert "mmk12 has one split, test; it stands in for dev" in split.notes


def test_any_repository_opens_by_its_id_at_its_newest_commit(hub: HubServer, tmp_path: Path) -> None:
    old = publish(hub, tmp_path / "old", "stand-in/numbered", rows=5)
    first = opened("stand-in/numbered")
    new = publish(hub, tmp_path / "new", "stand-in/numbered", rows=10)
    second = opened("stand-in/numbered")
    assert first.notes[0] == f"data: stand-in/numbered at commit {old}"
    assert second.notes[0] == f"data: stand-in/numbered at commit {new}"
    assert (first.report.kept, second.report.kept) == (5, 10)
    assert second.train[0].sample_id.startswith("stand-in/numbered/train/")


def test_a_pinned_revision_is_opened_and_named_by_its_commit(hub: HubServer, tmp_path: Path) -> None:
    commit = publish(hub, tmp_path / "old", "stand-in/pinned", rows=5, revision="v1")
    publish(hub, tmp_path / "new", "stand-in/pinned", rows=10)
    by_name, by_hash = opened("stand-in/pinned", revision="v1"), opened("stand-in/pinned", revision=commit)
    assert by_name.report.kept == by_hash.report.kept == 5
    assert by_name.notes == by_hash.notes == (f"data: stand-in/pinned at commit {commit}",)
    assert by_name.train.fingerprint == by_hash.train.fingerprint


def test_a_repository_of_image_files_opens_as_the_folder_it_is(hub: HubServer, tmp_path: Path) -> None:
    write_lines(tmp_path / "train" / "metadata.jsonl", [
        {"file_name": row.pop("image")} | row for row in image_rows(5, tmp_path / "train")
    ])  # fmt: skip
    hub.publish("datasets", "stand-in/folder", tmp_path)
    split = opened("stand-in/folder")
    assert split.report.counts == {}
    assert sorted(row.images[0].height for rows in (split.train, split.held_out) for row in rows) == list(range(10, 15))


def test_rows_of_a_repository_lead_to_no_file_of_this_machine(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    folder = tmp_path / "set"
    rows = [{"problem": "What?", "image": str(tmp_path / "secret.png"), "answer": "1"}] * 3
    write_lines(folder / "train.jsonl", rows)
    hub.publish("datasets", "stand-in/named", folder)
    with pytest.raises(DataError, match="3 x image is named, not held: stand-in/named/train/0"):
        opened("stand-in/named")


def test_what_does_not_exist_is_named_with_what_does(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, tmp_path, "stand-in/real")
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"dataset": "stand-in/geo3kk"}, DataError, "no data set on the hub that you may read; .* Did you mean geo3k?"),
        ({"dataset": "stand-in/none-such"}, DataError, "Presets: clevr-count, geo3k, geoqa, mathvista, mmk12, "),
        ({"dataset": "stand-in/real", "split": "trian"}, ConfigError, "data.split is trian; stand-in/real has train"),
        ({"dataset": "stand-in/real", "eval_split": "x"}, ConfigError, "data.eval_split is x; stand-in/real has train"),
        ({"dataset": "stand-in/real", "revision": "v9"}, ConfigError, "data.revision is v9, which stand-in/real does"),
        ({"dataset": "stand-in/real", "subset": "b"}, ConfigError, "data.subset is b; stand-in/real has default"),
    ]  # fmt: skip
    for arguments, kind, message in wrong:
        with pytest.raises(kind, match=message):
            opened(**arguments)


def test_subsets_are_chosen_by_name(hub: HubServer, tmp_path: Path) -> None:
    for name, rows in (("easy", 5), ("hard", 10)):
        write_parquet(tmp_path / name / "train.parquet", parquet_rows(rows), LISTED)
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {name}\n  data_files: {name}/train.parquet\n" for name in ("easy", "hard")
    )
    (tmp_path / "README.md").write_text(card + "---\n")
    hub.publish("datasets", "stand-in/subsets", tmp_path)
    assert opened("stand-in/subsets", subset="hard").report.kept == 10
    with pytest.raises(ConfigError, match=r"data\.subset is not set; stand-in/subsets has easy, hard. Name one"):
        opened("stand-in/subsets")
    with pytest.raises(ConfigError, match=r"data\.subset is herd; .* Did you mean hard"):
        opened("stand-in/subsets", subset="herd")


def test_a_gated_repository_says_where_to_ask(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, tmp_path, "stand-in/gated")
    hub.restrict("datasets", "stand-in/gated", "gated", ("hf_reader",))
    with pytest.raises(DataError, match=r"stand-in/gated is gated: accept its terms at https://.*gated, then log in"):
        opened("stand-in/gated")


def test_a_private_repository_looks_missing_and_says_how_to_log_in(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, tmp_path, "stand-in/private")
    hub.restrict("datasets", "stand-in/private", "private", ("hf_reader",))
    with pytest.raises(DataError, match="no data set on the hub that you may read; were it private, log in"):
        opened("stand-in/private")


def test_a_repository_that_brings_code_is_refused(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "scripted.py").write_text("raise SystemExit('ran')\n")
    hub.publish("datasets", "stand-in/scripted", tmp_path)
    with pytest.raises(DataError, match="stand-in/scripted brings code of its own, which is never run"):
        opened("stand-in/scripted")


def test_a_repository_without_data_is_refused(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing yet\n")
    hub.publish("datasets", "stand-in/empty", tmp_path)
    with pytest.raises(DataError, match="stand-in/empty"):
        opened("stand-in/empty")


def test_a_damaged_file_of_the_hub_is_refused(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and then nothing")
    hub.publish("datasets", "stand-in/damaged", tmp_path)
    with pytest.raises(DataError, match="stand-in/damaged cannot be read"):
        opened("stand-in/damaged")


def test_a_full_disk_is_a_matter_of_storage(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub, tmp_path, "stand-in/large")

    def no_space(*_: object, **__: object) -> bool:
        return False

    monkeypatch.setattr("datasets.builder.has_sufficient_disk_space", no_space)
    with pytest.raises(StorageError, match="the disk is too full for stand-in/large"):
        opened("stand-in/large")


def answer(asked: str) -> str:
    """What opening `name@revision` yields: fingerprint, size of an image and provenance, or the error."""
    name, _, revision = asked.partition("@")
    try:
        split = opened(name, revision=revision or None)
    except DataError as error:
        return str(error)
    return f"{split.train.fingerprint} {split.train[0].images[0].size} {split.notes[0]}"


@pytest.mark.parametrize(
    ("way", "constant", "value"),
    [("told to stay offline", "HF_HUB_OFFLINE", True), ("nobody answers", "ENDPOINT", "http://127.0.0.1:9")],
)
def test_what_was_opened_once_opens_without_the_hub(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, constant: str, value: object
) -> None:
    name = f"stand-in/{way.replace(' ', '-')}"
    old, new = publish(hub, tmp_path / "old", name, revision="v1"), publish(hub, tmp_path / "new", name, rows=8)
    write_lines(tmp_path / "images" / "metadata.jsonl", image_rows(5, tmp_path / "images"))
    hub.publish("datasets", f"{name}-folder", tmp_path / "images")
    cached = [f"{name}@{old}", f"{name}@{new}", f"{name}-folder@"]
    wanted = [answer(asked) for asked in cached]
    hub.requests.clear()
    monkeypatch.setattr(f"huggingface_hub.constants.{constant}", value)
    found = [answer(asked) for asked in cached]
    assert found == [f"{line}; the hub is out of reach, this is what the cache holds" for line in wanted]
    assert answer(f"{name}@{'0' * 40}").startswith(f"the hub is out of reach, and the cache holds {name} at ")
    assert answer("stand-in/never@") == (
        "the hub is out of reach, and stand-in/never is not in the cache; open it once while connected"
    )
    assert hub.requests == []
