from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return [content for name, content in fences if name == language]


def test_every_table_is_what_the_committed_results_say() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readmes_tree_names_what_is_there_and_every_room_of_the_package() -> None:
    tree = next(block for block in blocks("") if "vgpo_lite/\n" in block)
    named, parents = set(), {0: ROOT}
    for line in tree.splitlines():
        depth = len(line) - len(line.lstrip())
        name = line.split()[0]
        path = parents[depth] / name
        assert path.exists(), f"{name} is in the README's tree but not in the repository"
        parents[depth + 2] = path
        named.add(path)
    rooms = {
        path
        for path in (ROOT / "vgpo_lite").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and not path.name.startswith("__")
    }
    missing = {path.name for path in rooms - named} - {"recipes"}
    assert not missing, f"not in the README's tree: {missing}"


def test_the_readmes_layers_are_those_of_the_import_contract() -> None:
    contract = (ROOT / "pyproject.toml").read_text()
    rows = re.findall(r'^  "([a-z_| ]+)",$', contract.split("layers = [")[1].split("]")[0], flags=re.MULTILINE)
    assert any(block.split("\n")[:-1] == rows for block in blocks(""))


def test_the_readmes_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = blocks("python")
    exec(compile(program, "README.md", "exec"), {})  # the README's own words
    assert "Accuracy(right=" in capsys.readouterr().out
    assert (tmp_path / "merged-tiny" / "config.json").is_file()


def test_every_train_command_in_the_readme_resolves() -> None:
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("vgpo-lite train")]
    assert commands
    for command in commands:
        words = [sys.executable, "-m", "vgpo_lite", *command.split()[1:], "--dry-run"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_documentation_builds_without_a_broken_link(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert all((tmp_path / "site" / page / "index.html").is_file() for page in pages)
