"""What a path on the command line stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from vgpo_lite.commands.targets import adapter_folder, existing_folder, run_of, target
from vgpo_lite.errors import CheckpointError, ConfigError


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "runs" / "tiny-shapes"
    for part in ("adapter", "checkpoints/step-000025"):
        (folder / part).mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 1\n")
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    return folder


def test_a_run_in_the_place_of_a_model_brings_settings_and_adapter(run):
    found = target(str(run), None)
    assert (found.recipe, found.model, found.adapter) == (str(run / "config.yaml"), None, str(run / "adapter"))


@pytest.mark.parametrize("part", ["", "adapter"])
def test_a_run_in_the_place_of_an_adapter_brings_settings_too(run, part):
    found = target(None, str(run / part))
    assert (found.recipe, found.model, found.adapter) == (str(run / "config.yaml"), None, str(run / "adapter"))


def test_an_adapter_keeps_its_run_s_settings_where_the_model_is_named_beside_it(run):
    found = target("qwen2-vl-2b", str(run))
    assert (found.recipe, found.model, found.adapter) == (
        str(run / "config.yaml"),
        "qwen2-vl-2b",
        str(run / "adapter"),
    )


def test_an_adapter_from_elsewhere_brings_no_settings(run, tmp_path):
    (run / "adapter").rename(tmp_path / "downloaded")
    found = target("qwen2-vl-2b", str(tmp_path / "downloaded"))
    assert (found.recipe, found.model, found.adapter) == (None, "qwen2-vl-2b", str(tmp_path / "downloaded"))


def test_a_recipe_of_the_user_counts_instead_of_the_run_s(run):
    assert target(None, str(run), "vgpo").recipe == "vgpo"


def test_a_model_alone_is_a_model():
    found = target("qwen2-vl-2b", None)
    assert (found.recipe, found.model, found.adapter) == (None, "qwen2-vl-2b", None)


def test_a_model_merged_inside_of_a_run_is_a_model_of_its_own(run):
    (run / "merged").mkdir()
    found = target(str(run / "merged"), None)
    assert (found.recipe, found.model, found.adapter) == (None, str(run / "merged"), None)


def test_a_run_is_found_from_its_parts_and_from_nowhere_else(run, tmp_path):
    assert run_of(run / "adapter") == run
    assert run_of(run / "checkpoints" / "step-000025") == run
    assert run_of(tmp_path) is None
    assert run_of(tmp_path / "missing") is None


def test_a_missing_folder_names_the_nearest(run):
    with pytest.raises(ConfigError, match=r"there is no folder .*tiny-shaps; did you mean .*tiny-shapes\?"):
        existing_folder(str(run.with_name("tiny-shaps")))
    with pytest.raises(ConfigError, match="there is no folder /no/such/place"):
        existing_folder("/no/such/place")


def test_a_run_that_has_not_finished_says_how_to_finish_it(run):
    (run / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match="continue it with --resume auto"):
        adapter_folder(str(run))
    with pytest.raises(CheckpointError, match="so it is no adapter"):
        adapter_folder(str(run.parent))
