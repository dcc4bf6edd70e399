"""A backend that patches transformers is imported before it; stand-ins take the place of the card and the library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vgpo_lite
from vgpo_lite.errors import ConfigError, HardwareError
from vgpo_lite.models.backends import import_backend

ROOT = Path(vgpo_lite.__file__).parents[1]

RECORDING_UNSLOTH = """
import json, os, sys
with open(os.environ["SEEN"], "a") as file:
    file.write(json.dumps(sorted({"transformers", "peft", "trl"} & set(sys.modules))) + "\\n")
raise NotImplementedError("Unsloth cannot find a card that it knows")
"""
COMMANDS = """
import torch
from vgpo_lite.commands import main
torch.cuda.is_available = lambda: True
for words in (["train", "-o", "run"], ["eval"], ["chat", "tiny", "-q", "How many?"]):
    try:
        main([*words, "--set", "backend=unsloth"])
    except SystemExit as left:
        print(left.code)
"""


def test_every_command_that_loads_a_model_imports_unsloth_before_transformers(tmp_path: Path) -> None:
    (tmp_path / "unsloth.py").write_text(RECORDING_UNSLOTH)
    paths = os.pathsep.join((str(tmp_path), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": paths, "SEEN": str(tmp_path / "seen.jsonl")}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["4", "4", "4"], done.stderr
    assert [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()] == [[], [], []]
    assert done.stderr.count("Unsloth cannot be imported (Unsloth cannot find a card that it knows)") == 3
    assert not (tmp_path / "run").exists()


def test_unsloth_is_refused_without_a_card_without_the_package_and_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "unsloth", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(HardwareError, match="backend=unsloth needs a CUDA card") as caught:
        import_backend("unsloth", device="auto")
    assert caught.value.exit_code == 4
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(HardwareError, match="needs a CUDA card"):
        import_backend("unsloth", device="cpu")
    monkeypatch.setitem(sys.modules, "transformers", sys)
    with pytest.raises(ConfigError, match="transformers was imported first"):
        import_backend("unsloth", device="cuda")
    monkeypatch.delitem(sys.modules, "transformers")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(HardwareError, match=r"\(No module named 'unsloth'\)\. Install it with `pip install"):
        import_backend("unsloth", device="auto")


def test_the_default_backend_is_imported_when_it_loads() -> None:
    import_backend("transformers", device="auto")
