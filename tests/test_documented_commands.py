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

from tests.test_gguf import STAND_IN
from tests.test_launcher import run_as_typed
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
PROGRAMS = (
    "accelerate", "hf", "llama-", "make", "mkdocs", "pip", "python", "torchrun", "transformers", "vgpo-lite", "vllm",
)  # fmt: skip
LAUNCHERS = ("accelerate launch ", "torchrun ")
ELSEWHERE = {
    "make demo": "by hand: it installs",
    "make test": "it runs this test",
    "make docs": "tests/test_documents.py holds the tables, tests/config the settings, to what it writes",
    "make torture": "by hand: half an hour; tests/test_kills.py has a few kills",
    "mkdocs serve": "tests/test_documents.py builds the same pages",
    r"vgpo-lite recipe list \| show \| copy \| check": "tests/commands, and below by the pages that use one",
    "pip install .": "tests/test_wheel.py",
    'pip install ".[trl]"': "tests/test_wheel.py installs, tests/integrations imports",
    "pip install 'vgpo-lite[wandb]'": "needs the network",
    'pip install "transformers[serving]"': "needs the network",
    "pip install -r requirements/requirements-convert_hf_to_gguf.txt": "in a checkout of llama.cpp",
    "transformers serve merged --port 8000": "tests/test_serving.py, on a free port",
    "vllm serve merged": "needs a GPU; the page says that it has not been run",
    "vllm serve BASE --enable-lora --max-lora-rank 16 --lora-modules mine=runs/RUN/adapter": "the same",
    "llama-mtmd-cli -m merged/merged.gguf --mmproj merged/mmproj-merged.gguf --image picture.png "
    '-p "How many red circles are there?"': "needs llama.cpp; the page says that it has not been run",
    "llama-server -m merged/merged.gguf --mmproj merged/mmproj-merged.gguf": "the same",
    "python convert_hf_to_gguf.py merged --outfile merged/merged.gguf": "llama.cpp's own; tests/test_gguf.py",
    "hf auth login": "asks for a secret",
    "accelerate launch --cpu --num_processes 2": "named for what it does not do",
    'VGPO_LITE_FAILPOINT="checkpoint.before_rename=kill@2" vgpo-lite train': "tests/test_failpoints.py",
}
"""Documented commands that are not run here, and where they are."""
MEASUREMENTS = re.compile(r"python benchmarks/\w+\.py( --[a-z-]+( \d+)?)*$")
"""Take minutes to days; tests/test_documents.py holds the tables to their committed results."""


def documented() -> list[str]:
    """Every command once, as it stands there: each line of a shell's block, and of the words in backquotes those that
    begin with a program and say more than the name of a command."""
    found: dict[str, None] = {}
    for text in (path.read_text() for path in DOCUMENTS):
        shells = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
        found |= dict.fromkeys(line.partition("  #")[0].strip() for shell in shells for line in shell.splitlines())
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        for quoted in re.findall(r"`([^`\n]+)`", prose):
            named = re.sub(r"^[A-Z_]+=\S+ ", "", quoted)
            is_name = named.startswith(("vgpo-lite ", "transformers ", "python ")) and len(quoted.split()) < 3
            if named.startswith(PROGRAMS) and " " in named and not is_name:
                found[quoted] = None
    return list(found)


def runs_here(command: str) -> bool:
    """Whether the tests below run it."""
    return command not in ELSEWHERE and not MEASUREMENTS.match(command)


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
    return [re.sub("^~/llama.cpp$", "llama.cpp", word) for word in words]


def launched_on_the_tiny_model(command: str, datasets: set[str]) -> str:
    """A launcher's command line with two processes, and the rest as everywhere."""
    launcher, _, arguments = command.removesuffix(" ...").partition(" -m vgpo_lite ")
    launcher = re.sub(r"(--num_processes|--nproc_per_node) \d+", r"\1 2", launcher)
    words = [*on_the_tiny_model(f"vgpo-lite {arguments}", datasets), "--set", "prompts_per_step=2"]
    return f"{launcher} -m vgpo_lite {shlex.join(words)}"


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
        (folder / "llama.cpp").mkdir()
        (folder / "llama.cpp" / "convert_hf_to_gguf.py").write_text(STAND_IN)
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


def test_no_documented_command_is_left_out() -> None:
    """A command is run below or stands in the table, with where it is run, and nothing stands there for nothing."""
    named = documented()
    left = [c for c in named if runs_here(c) and not c.startswith(("vgpo-lite ", *LAUNCHERS))]
    assert not left, "run these here, or say in ELSEWHERE where they are"
    assert set(ELSEWHERE) <= set(named)
    for path in DOCUMENTS:
        plain = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
        indented = [
            line for line in plain.splitlines() if line.startswith("    ") and line.lstrip().startswith(PROGRAMS)
        ]
        assert not indented, f"{path.name}: a command stands in a block that begins with ```bash"


@pytest.mark.parametrize("command", [c for c in documented() if runs_here(c) and c.startswith(LAUNCHERS)])
def test_a_documented_launch_runs(command: str, tmp_path: Path) -> None:
    done = run_as_typed(launched_on_the_tiny_model(command, set(recipe_names("datasets"))), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "again" / "adapter").is_dir()


@pytest.mark.parametrize("command", [c for c in documented() if runs_here(c) and c.startswith("vgpo-lite ")])
def test_a_documented_command_runs(
    command: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    for made in ("runs", "other-run", "picture.png", "llama.cpp"):
        (folder / made).symlink_to(place / made)
    monkeypatch.chdir(folder)
    (folder / "my_rewards.py").write_text("def short(completions, **_):\n    return [0.0 for _ in completions]\n")
    if "recipe copy" not in command:
        (folder / "my.yaml").write_text("seed: 3\n")
    words = on_the_tiny_model(command, set(recipe_names("datasets")))
    words = [str(tmp_path / "again") if word == "runs/again" else word for word in words]
    if words[:2] == ["merge", "merged"]:
        assert ran(["merge", "runs/tiny-shapes", "--output", "merged"]) == 0
    code = ran(words)
    printed = capsys.readouterr()
    assert code == 0, f"{words}: {printed.out}{printed.err}"
