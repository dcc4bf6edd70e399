"""Every command that README and docs name is run: on the tiny model, wherever they name a large one."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from vgpo_lite.commands import main
from vgpo_lite.config.recipes import recipe_names

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STEPS = [
    "--max-steps",
    "1",
    "--set",
    "data.limit=64",
    "--set",
    "eval.limit=2",
    "--set",
    "prompts_per_step=1",
    "--set",
    "num_generations=4",
]
PLACEHOLDERS = {
    "MODEL": "tiny",
    "DATASET": "shapes",
    "RUN": "runs/tiny-shapes",
    "OTHER_RUN": "other-run",
    "FOLDER": "merged",
    "FILE": "picture.png",
    "TEXT": "How many red circles are there?",
    "GB": "8",
    "N": "1",
    "OWNER/NAME": "owner/name",
}


def documented() -> list[str]:
    """Every command once, as it stands there; the words alone of a command's name are none."""
    found: dict[str, None] = {}
    for text in (path.read_text() for path in DOCUMENTS):
        shells = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
        lines = [line for shell in shells for line in shell.splitlines()]
        commands = [line.partition("  #")[0].strip() for line in lines] + re.findall(r"`(vgpo-lite [^`\n]+)`", text)
        found |= dict.fromkeys(
            c for c in commands if c.startswith("vgpo-lite ") and len(c.split()) > 2 and "|" not in c
        )
    return list(found)


def on_the_tiny_model(command: str, datasets: set[str]) -> list[str]:
    """The command's arguments, with the tiny model and one step in the place of what needs a GPU or the network."""
    words = shlex.split(command.replace("[", "").replace("]", ""))[1:]
    words = [PLACEHOLDERS.get(word, word) for word in words]
    words = [re.sub(r"^runs/[\w.-]+$", "runs/tiny-shapes", word) for word in words]
    for place, word in enumerate(words[:-1]):
        if word in ("--model", "-m"):
            words[place + 1] = "tiny"
        elif word in ("--dataset", "-d"):
            words[place + 1] = "shapes" if words[place + 1] in datasets else words[place + 1]
        elif word == "--step":
            words[place + 1] = "1"
    if words[0] == "train" and "--dry-run" not in words:
        words += [*STEPS, "--output", "runs/again"]
    if words[0] == "eval":
        words += ["--limit", "2"]
    return words


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the documents take for granted: a run, a picture, a recipe."""
    folder = tmp_path_factory.mktemp("reader")
    Image.new("RGB", (112, 112), (190, 190, 190)).save(folder / "picture.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "excepthook", sys.excepthook)
        assert ran(["train", *STEPS]) == 0
        shutil.copytree(folder / "runs" / "tiny-shapes", folder / "other-run")
        settings = folder / "other-run" / "config.yaml"
        settings.write_text(re.sub("^seed: 0", "seed: 1", settings.read_text(), flags=re.MULTILINE))
        yield folder


def ran(words: list[str]) -> int:
    """Exit code of a command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["vgpo-lite", *words])
        with pytest.raises(SystemExit) as left:
            main(words)
    return int(left.value.code or 0)


def test_the_documents_name_commands() -> None:
    assert len(documented()) > 15


@pytest.mark.parametrize("command", documented())
def test_a_documented_command_runs(
    command: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    for made in ("runs", "other-run", "picture.png"):
        (folder / made).symlink_to(place / made)
    monkeypatch.chdir(folder)
    (folder / "my_rewards.py").write_text("def short(completions, **_):\n    return [0.0 for _ in completions]\n")
    if "recipe copy" not in command:
        (folder / "my.yaml").write_text("seed: 3\n")
    words = on_the_tiny_model(command, set(recipe_names("datasets")))
    words = [str(tmp_path / "again") if word == "runs/again" else word for word in words]
    code = ran(words)
    printed = capsys.readouterr()
    assert code == 0, f"{words}: {printed.out}{printed.err}"
