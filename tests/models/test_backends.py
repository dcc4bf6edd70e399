"""A backend that patches transformers is imported before it; stand-ins take the place of the card and the library."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib import metadata
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


def test_every_argument_we_give_unsloth_is_one_it_takes() -> None:
    """From the syntax tree of the installed package; a machine without a card cannot import it."""
    called = _keywords_of_call(ROOT / "vgpo_lite" / "models" / "backends" / "unsloth.py", "from_pretrained")
    taken = _parameters_of_method(_unsloth_source("unsloth/models/loader.py"), "FastVisionModel", "from_pretrained")
    assert taken[0] == "model_name"  # the one argument that goes by its place
    assert called == ["load_in_4bit", "dtype", "use_gradient_checkpointing", "trust_remote_code"]
    assert set(called) <= set(taken)


def test_an_argument_that_unsloth_renames_is_found(tmp_path: Path) -> None:
    renamed = tmp_path / "loader.py"
    renamed.write_text(
        "class FastModel:\n    @staticmethod\n"
        "    def from_pretrained(model_name, *, load_in_nf4=False, **kwargs): ...\n"
        "class FastVisionModel(FastModel): ...\n"
    )
    taken = _parameters_of_method(renamed, "FastVisionModel", "from_pretrained")
    assert taken == ["model_name", "load_in_nf4"]


def _unsloth_source(name: str) -> Path:
    try:
        files = metadata.files("unsloth") or []
    except metadata.PackageNotFoundError:
        pytest.fail("Unsloth's source is not here: make test installs it, or pip install --no-deps unsloth")
    return next(Path(str(file.locate())) for file in files if str(file) == name)


def _keywords_of_call(path: Path, method: str) -> list[str]:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    (call,) = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == method]
    return [str(keyword.arg) for keyword in call.keywords]


def _parameters_of_method(path: Path, name: str, method: str) -> list[str]:
    """Names of a method's parameters, looked for in the class and then in its bases in the same file."""
    classes = {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)}
    own = [node for node in classes[name].body if isinstance(node, ast.FunctionDef) and node.name == method]
    if not own:
        (base,) = classes[name].bases
        return _parameters_of_method(path, ast.unparse(base), method)
    return [argument.arg for argument in (*own[0].args.args, *own[0].args.kwonlyargs)]
