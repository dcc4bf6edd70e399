"""The walkthrough runs from top to bottom on the tiny model, and the notebook is the one its script makes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "notebooks" / "vgpo_lite_walkthrough.py"
NOTEBOOK = SCRIPT.with_suffix(".ipynb")


def test_the_notebook_is_what_its_script_makes() -> None:
    made, kept = jupytext.read(SCRIPT), nbformat.read(NOTEBOOK, as_version=4)
    assert [(cell.cell_type, cell.source) for cell in kept.cells] == [(c.cell_type, c.source) for c in made.cells]
    assert not any(cell.get("outputs") for cell in kept.cells)


def test_the_walkthrough_runs_on_a_cpu_with_one_variable_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path[1:]]))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    chosen = [cell for cell in notebook.cells if cell.source == 'MODEL = "qwen2-vl-2b"']
    (chosen[0],) = chosen
    chosen[0].source = 'MODEL = "tiny"'
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    run = tmp_path / "runs" / "tiny-shapes-walkthrough"
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "finished"
    assert (run / "inspection.html").is_file()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "step 8/8" in printed
    assert "| right answer:" in printed
    assert "\\boxed{" in printed.split("| right answer:")[0].rsplit("\n", 2)[-1]
    answers = [
        "".join(output.get("text", "") for output in c.get("outputs", []))
        for c in notebook.cells
        if " chat " in c.source
    ]
    assert len(answers) == 2  # before, and after
    assert all("\\boxed{" in answer for answer in answers)
    pages = [
        o["data"]["text/html"] for c in notebook.cells for o in c.get("outputs", []) if "text/html" in o.get("data", {})
    ]
    assert any(' srcdoc="' in page for page in pages)  # browsers open no data: address of more than 2 MB
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) >= 3  # the first row's image, and at least two plots
