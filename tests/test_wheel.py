"""What a built wheel holds, and that it works where nothing but it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from this checkout without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_a_wheel_holds_every_module_recipe_and_the_built_in_model(names):
    for path in ROOT.glob("vgpo_lite/**/*"):
        if path.is_file() and path.suffix != ".pyc":
            assert str(path.relative_to(ROOT)) in names
    for path in ROOT.glob("recipes/*/*.yaml"):
        assert f"vgpo_lite/{path.relative_to(ROOT)}" in names
    assert "vgpo_lite/recipes/runs/vgpo.yaml" in names
    assert "vgpo_lite/models/tiny/model.safetensors" in names


def test_a_wheel_installs_no_other_top_level_name(names):
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vgpo_lite"}
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".bin", ".pt"))]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel in it; what it needs is lent by the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            str(wheel),
        ],
        check=True,
        capture_output=True,
    )
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    (Path(site) / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


def call(installed: Path, cwd: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [installed / "bin" / arguments[0], *arguments[1:]], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installed_wheel_knows_its_recipes_from_any_folder(installed, tmp_path):
    assert call(installed, tmp_path, "vgpo-lite", "--version").startswith("vgpo-lite ")
    listed = call(installed, tmp_path, "vgpo-lite", "recipe", "list")
    assert "qwen2-vl-2b" in listed
    assert "dapo-baseline" in listed
    shown = call(installed, tmp_path, "vgpo-lite", "train", "--dry-run", "-m", "qwen2-vl-2b", "-r", "vgpo")
    assert "Qwen/Qwen2-VL-2B-Instruct" in shown


def test_an_installed_wheel_is_the_one_that_runs(installed, tmp_path):
    code = (
        "import vgpo_lite; from vgpo_lite.config.recipes import recipe_root; print(vgpo_lite.__file__, recipe_root())"
    )
    file, recipes = call(installed, tmp_path, "python", "-c", code).split()
    assert Path(file).is_relative_to(installed.resolve()) or Path(file).is_relative_to(installed)
    assert Path(recipes) == Path(file).parent / "recipes"


def test_an_installed_wheel_trains_its_own_model_with_its_own_recipes(installed, tmp_path):
    sizes = ["prompts_per_step=2", "data.limit=8", "eval.limit=2", "max_completion_length=24"]
    settings = [word for size in sizes for word in ("--set", size)]
    told = call(installed, tmp_path, "vgpo-lite", "train", "--max-steps", "2", "-o", "run", "--quiet", *settings)
    assert told.startswith("run: 2 steps, ")
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert "model: tiny " in (tmp_path / "run" / "config.yaml").read_text()
