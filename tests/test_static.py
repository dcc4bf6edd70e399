"""What the program's syntax trees must not hold: whatever runs text or bytes that came from elsewhere as code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = sorted(
    [
        ROOT / "cli.py",
        *(path for room in ("vgpo_lite", "scripts", "benchmarks") for path in (ROOT / room).rglob("*.py")),
    ]
)

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "commands.getoutput"}
NAMES = {
    "torch.load",
    "torch.serialization.load",
    "numpy.load",
    "pandas.read_pickle",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "yaml.Loader",
    "yaml.FullLoader",
    "yaml.UnsafeLoader",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "builtins.eval",
    "builtins.exec",
}
BUILT_IN = {"eval", "exec"}
ARGUMENTS = {("shell", True), ("trust_remote_code", True), ("weights_only", False), ("allow_pickle", True)}


def faults(source: str) -> list[str]:
    """Every forbidden name and argument of a program, each with its line."""
    tree = ast.parse(source)
    known = dict(_imported(tree))
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return [f"line {line}: {what}" for line, what in sorted(_found(tree, known, own))]


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """The names that imports bind, and what each stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                yield alias.asname or whole, whole
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _found(tree: ast.AST, known: dict[str, str], own: set[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, name) for name in _names(node) & (MODULES | NAMES))
        elif isinstance(node, ast.Attribute) and (name := _dotted(node, known)) in NAMES:
            yield node.lineno, name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in BUILT_IN - known.keys() - own:
            yield node.lineno, node.id
        elif isinstance(node, ast.Call):
            yield from _by_argument(node)
            yield from _by_text(node, known)


def _names(node: ast.Import | ast.ImportFrom) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}


def _by_argument(node: ast.Call) -> Iterator[tuple[int, str]]:
    for argument in node.keywords:
        if isinstance(argument.value, ast.Constant) and (argument.arg, argument.value.value) in ARGUMENTS:
            yield node.lineno, f"{argument.arg}={argument.value.value}"


def _dotted(node: ast.expr, known: dict[str, str]) -> str:
    """What a chain of attributes names, aliases of imports resolved; empty where it starts at something else."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        start = _dotted(node.value, known)
        return f"{start}.{node.attr}" if start else ""
    return ""


def _by_text(node: ast.Call, known: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Forbidden modules and names asked for by a text: `import_module("pickle")`, `getattr(torch, "load")`."""
    texts = [part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    called = _dotted(node.func, known)
    if called in {"importlib.import_module", "__import__"}:
        yield from ((node.lineno, text) for text in texts if text.partition(".")[0] in MODULES)
    if called == "getattr" and texts and (whole := f"{_dotted(node.args[0], known)}.{texts[0]}") in NAMES:
        yield node.lineno, whole


@pytest.mark.parametrize("path", PROGRAM, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_of_the_program_runs_what_it_reads(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p\np.loads(b'')",
        "from pickle import loads",
        "import dill, os",
        "import joblib.numpy_pickle",
        "importlib = __import__('pickle')",
        "import importlib\nimportlib.import_module('cloudpickle')",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x')",
        "from torch import load",
        "import torch\nread = torch.load",
        "import torch\ngetattr(torch, 'load')('x')",
        "def f():\n    import torch.serialization\n    torch.serialization.load('x')",
        "import torch\nf(torch.zeros(1), weights_only=False)",
        "import numpy as np\nnp.load('x')",
        "eval('1')",
        "exec('1')",
        "run = eval",
        "import builtins\nbuiltins.exec('1')",
        "from builtins import eval as calculate",
        "import yaml\nyaml.load('x', Loader=yaml.SafeLoader)",
        "import yaml\nyaml.compose('x', Loader=yaml.Loader)",
        "from yaml import full_load",
        "import yaml\nyaml.unsafe_load('x')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "from subprocess import run\nrun('ls', check=True, shell=True)",
        "import os\nos.system('ls')",
        "from os import system",
        "import os as o\no.popen('ls')",
        "load(folder, trust_remote_code=True)",
    ],
)
def test_the_checker_sees_each_of_them(source: str) -> None:
    assert len(faults(source)) >= 1


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "from vgpo_lite.commands import eval as evaluation\nevaluation.run()",
        "class C:\n    eval: int = 0",
        "spec.loader.exec_module(module)",
        "import yaml\nyaml.safe_load('x')\nyaml.compose('x', Loader=yaml.SafeLoader)",
        "import json\njson.load(file)",
        "from safetensors.torch import load",
        "import subprocess\nsubprocess.run(['ls'], shell=False)",
        "load(folder, trust_remote_code=request.trust_remote_code)",
        "'eval(1); import pickle'",
    ],
)
def test_the_checker_leaves_what_only_looks_like_them(source: str) -> None:
    assert faults(source) == []


def test_the_checker_names_the_line_and_reads_the_whole_program() -> None:
    assert faults("import os\n\nos.system('ls')\n") == ["line 3: os.system"]
    names = {str(path.relative_to(ROOT)) for path in PROGRAM}
    assert {"cli.py", "vgpo_lite/trainer.py", "vgpo_lite/models/loading.py", "benchmarks/peers.py"} <= names
    assert any(name.startswith("scripts/") for name in names)
