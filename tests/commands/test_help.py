"""First contact: help, version, mistyped commands, and what importing costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vgpo_lite

ROOT = Path(vgpo_lite.__file__).parents[1]
PATHS = [
    "",
    "train",
    "eval",
    "merge",
    "replay",
    "chat",
    "doctor",
    "recipe",
    "compare",
    "report",
    "recipe list",
    "recipe show",
    "recipe copy",
    "recipe check",
    "data",
    "data check",
]
HEAVY = {
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "datasets",
    "huggingface_hub",
    "numpy",
    "pyarrow",
    "matplotlib",
}


def test_help_of_every_command_loads_nothing_heavy():
    code = f"""
import sys
from vgpo_lite.commands import main
for path in {PATHS!r}:
    try:
        main([*path.split(), "--help"])
    except SystemExit as left:
        assert left.code == 0
heavy = {HEAVY!r} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: vgpo-lite") == len(PATHS)


@pytest.mark.parametrize("path", PATHS)
def test_help_fits_a_terminal_and_shows_no_markup(cli, path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = cli(*path.split(), "--help")
    assert max(map(len, shown.out.splitlines())) <= 80
    assert "[bold]" not in shown.out
    assert "\\[" not in shown.out


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, vgpo_lite; heavy = {HEAVY!r} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_python_api_names_its_functions_and_no_others():
    assert {"load_config", "train", "evaluate", "merge", "__version__"} <= set(dir(vgpo_lite))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        vgpo_lite.__getattr__("trian")


@pytest.mark.parametrize("start", [["-m", "vgpo_lite"], ["cli.py"]])
def test_every_way_to_start_shows_the_version(start):
    done = subprocess.run([sys.executable, *start, "--version"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"vgpo-lite {vgpo_lite.__version__}\n"


def test_the_version_is_that_of_the_package():
    assert f'version = "{vgpo_lite.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_no_arguments_show_help(cli):
    shown = cli()
    assert "train" in shown.out + shown.err
    assert shown.code in (0, 2)  # typer's choice has changed between its versions


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "train"),
        (["train", "--modle", "x"], "--model"),
        (["recipe", "shwo", "x"], "show"),
        (["merge"], "RUN_OR_ADAPTER"),
        (["chat", "tiny"], "--question"),
    ],
)
def test_a_wrong_word_names_the_right_one_and_ends_with_2(cli, arguments, expected):
    shown = cli(*arguments)
    assert shown.code == 2
    assert expected in shown.err
    assert "Traceback" not in shown.err
