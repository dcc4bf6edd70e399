"""The command line, called in this process with stand-ins for what takes a model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from vgpo_lite.commands import main


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path) -> Callable[..., Outcome]:
    """Call the command line in an empty folder; returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back afterwards
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("VGPO_LITE_DEBUG", raising=False)

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["vgpo-lite", *arguments])
        with pytest.raises(SystemExit) as left:
            main(arguments)
        printed = capsys.readouterr()
        return Outcome(code=int(left.value.code or 0), out=printed.out, err=printed.err)

    return call


@pytest.fixture
def stand_in(monkeypatch) -> Callable[..., None]:
    """Put a stand-in module in the place of one that loads the model stack."""

    def put(module: str, **names: object) -> None:
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**names))

    return put
