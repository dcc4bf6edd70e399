"""Layers, their precedence, and what a resolved configuration remembers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from vgpo_lite.config.load import load_config, write_config
from vgpo_lite.config.recipes import recipe_names, recipe_root
from vgpo_lite.config.schema import RunConfig
from vgpo_lite.config.settings import settings
from vgpo_lite.config.writing import flat_values, scalar
from vgpo_lite.errors import ConfigError


def recipe(folder: Path, text: str, name: str = "my.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_each_layer_wins_over_the_one_below(tmp_path, monkeypatch):
    root = tmp_path / "recipes"
    for kind in ("models", "datasets", "gpus", "runs"):
        (root / kind).mkdir(parents=True)
    everything = ["top_k", "seed", "max_steps", "num_iterations", "prompts_per_step", "max_resamples"]
    layers = {"models/m": 11, "datasets/d": 12, "gpus/g": 13, "runs/r": 14}
    for place, (file, value) in enumerate(layers.items()):
        recipe(root, "\n".join(f"{key}: {value}" for key in everything[place:]), f"{file}.yaml")
    monkeypatch.setattr("vgpo_lite.config.recipes.recipe_root", lambda: root)
    recipe_names.cache_clear()
    try:
        config = load_config("r", model="m", dataset="d", gpu="g", overrides=["prompts_per_step=15"], max_resamples=16)
    finally:
        recipe_names.cache_clear()
    assert [flat_values(config)[key] for key in everything] == [11, 12, 13, 14, 15, 16]
    assert [config.sources[key] for key in everything] == [
        "model recipe m, line 1",
        "dataset recipe d, line 1",
        "card recipe g, line 1",
        "run recipe r, line 1",
        "--set prompts_per_step=15",
        "argument max_resamples",
    ]


def test_a_setting_above_wins_over_each_single_layer_below(tmp_path):
    path = recipe(tmp_path, "learning_rate: 1e-5\n")
    assert load_config(path).learning_rate == 1e-5
    assert load_config(path, overrides=["learning_rate=2e-5"]).learning_rate == 2e-5
    assert load_config(path, overrides=["learning_rate=2e-5"], learning_rate=3e-5).learning_rate == 3e-5
    assert load_config(overrides=["seed=1", "seed=2"]).seed == 2


def test_sections_merge_key_by_key(tmp_path):
    path = recipe(tmp_path, "focus:\n  beta: 0.1\n  gamma: 0.4\n")
    config = load_config(path, overrides=["focus.gamma=0.3"], focus={"kappa": 0.5})
    assert (config.focus.beta, config.focus.gamma, config.focus.kappa) == (0.1, 0.3, 0.5)
    assert config.focus.schedule == "linear"


def test_the_table_of_rewards_is_replaced_by_a_recipe_and_extended_by_an_entry(tmp_path):
    path = recipe(tmp_path, "reward:\n  functions: {format: 0.5}\n")
    assert load_config(path).reward.functions == {"format": 0.5}
    added = load_config(path, overrides=["reward.functions.my.py:score=2", "reward.functions.format=1"])
    assert added.reward.functions == {"format": 1.0, "my.py:score": 2.0}
    assert load_config(overrides=["reward.functions.format=0.2"]).reward.functions == {"accuracy": 1.0, "format": 0.2}
    whole = load_config(path, overrides=["reward.functions={accuracy: 1, format: 1e-1}"])
    assert whole.reward.functions == {"accuracy": 1.0, "format": 0.1}


def test_a_model_preset_brings_its_hub_id_and_a_hub_id_stands_for_itself(tmp_path):
    assert load_config(model="qwen2-vl-2b").model_id == "Qwen/Qwen2-VL-2B-Instruct"
    assert load_config(model="owner/some-model").model_id is None
    assert load_config(model=tmp_path).model == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("qwen2-vl-2b", "Qwen/Qwen2-VL-2B-Instruct"),
        ("qwen2-vl-7b", "Qwen/Qwen2-VL-7B-Instruct"),
        ("qwen2.5-vl-3b", "Qwen/Qwen2.5-VL-3B-Instruct"),
        ("qwen2.5-vl-7b", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("qwen3-vl-2b", "Qwen/Qwen3-VL-2B-Instruct"),
        ("qwen3-vl-4b", "Qwen/Qwen3-VL-4B-Instruct"),
        ("qwen3-vl-8b", "Qwen/Qwen3-VL-8B-Instruct"),
    ],
)
def test_every_promised_model_has_a_preset(name, hub_id):
    assert load_config(model=name).model_id == hub_id


def test_a_run_recipe_chooses_the_model_and_a_flag_chooses_another(tmp_path):
    path = recipe(
        tmp_path, "model: qwen2-vl-2b\nmodel_id: mirror/qwen\ndataset: geo3k\ndata:\n  id: mirror/geo\n  limit: 5\n"
    )
    mirrored = load_config(path)
    assert (mirrored.model_id, mirrored.data.id) == ("mirror/qwen", "mirror/geo")
    other = load_config(path, model="qwen3-vl-2b", dataset="owner/rows")
    assert other.model_id == "Qwen/Qwen3-VL-2B-Instruct"  # the recipe's id was another model's
    assert (other.data.id, other.data.limit) == (None, 5)


def test_a_written_config_repeats_the_run(tmp_path):
    config = load_config(
        "vgpo",
        model="qwen2-vl-2b",
        overrides=["reward.functions.format=0.1", "data.prompt_template='{{ question }} # no: \"x\"'", "data.split=no"],
        learning_rate=1.5e-6,
        output=str(tmp_path / "run"),
    )
    write_config(config, tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml")
    assert again == config
    assert set(again.sources) == set(settings())  # nothing is left to a later version's defaults
    assert again.sources["focus.beta"].startswith(str(tmp_path / "config.yaml"))


def test_a_run_directory_is_a_recipe(tmp_path):
    write_config(load_config(max_steps=7), tmp_path / "config.yaml")
    assert load_config(tmp_path).max_steps == 7


def test_a_written_config_says_where_each_value_came_from(tmp_path):
    config = load_config(model="qwen2-vl-2b", overrides=["seed=3"])
    write_config(config, tmp_path / "config.yaml")
    comments = {
        line.split(":")[0].strip(): line.partition("#")[2].strip()
        for line in (tmp_path / "config.yaml").read_text().splitlines()[1:]
    }
    assert comments["seed"] == "--set seed=3"
    assert comments["model_id"] == "model recipe qwen2-vl-2b, line 2"
    assert comments["temperature"] == "default"


def test_two_configs_are_equal_by_their_settings_alone():
    assert load_config(seed=3) == load_config(overrides=["seed=3"])
    assert load_config(seed=3) != load_config(seed=4)
    assert RunConfig(seed=3) == RunConfig(seed=3).with_sources({"seed": "here"})


@effort(deadline=None)
@given(st.text())
def test_any_text_survives_being_written(text):
    import yaml

    assert yaml.safe_load(f"key: {scalar(text)}\n") == {"key": text}


@effort(deadline=None)
@given(st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(), st.booleans(), st.none()))
def test_any_number_survives_being_written(value):
    from yaml import safe_load

    assert safe_load(f"key: {scalar(value)}\n") == {"key": value}


def test_none_says_nothing_and_paths_are_text(tmp_path):
    config = load_config(seed=None, output=tmp_path / "out")
    assert config.seed == 0
    assert "seed" not in config.sources
    assert config.output == str(tmp_path / "out")


def test_one_override_need_not_stand_in_a_list():
    assert load_config(overrides="seed=5").seed == 5


def test_loading_a_config_loads_no_torch():
    code = "import sys; from vgpo_lite import load_config; load_config(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_default_model_and_data_set_need_no_recipe_to_be_known():
    config = load_config()
    assert (config.model, config.dataset) == ("tiny", "shapes")


@pytest.mark.parametrize("kind", ["models", "datasets", "runs"])
def test_every_shipped_recipe_loads_and_says_what_it_is_for(kind):
    from vgpo_lite.config.load import check_recipe
    from vgpo_lite.config.recipes import description

    assert recipe_names(kind)
    for name in recipe_names(kind):
        path = recipe_root() / kind / f"{name}.yaml"
        check_recipe(path, name)
        assert description(path), f"{path} has no comment in its first line"


def test_shipped_presets_do_not_choose_for_each_other():
    from vgpo_lite.config.layers import read_recipe

    for kind in ("models", "datasets"):
        for name in recipe_names(kind):
            values = read_recipe(recipe_root() / kind / f"{name}.yaml", name).values
            assert not {"model", "dataset", "adapter", "output"} & set(values), f"{kind}/{name}"


def test_a_name_cannot_leave_the_folder_of_recipes():
    with pytest.raises(ConfigError, match="no recipe file"):
        load_config("../models/qwen2-vl-2b")
