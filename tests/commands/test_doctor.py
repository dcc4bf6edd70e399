"""What `doctor` finds on this machine, and what it says where something is missing."""

from __future__ import annotations

import json
from importlib import metadata

from vgpo_lite.commands import checkup
from vgpo_lite.commands.checkup import Verdict, findings


def test_this_machine_can_train(cli):
    found = list(findings())
    assert [finding.subject for finding in found if finding.verdict is Verdict.WRONG] == []
    subjects = {finding.subject for finding in found}
    assert {
        "Python",
        "libraries",
        "GPU",
        "4-bit arithmetic",
        "recipes",
        "built-in model",
        "model cache",
        "hub",
    } <= subjects
    assert all(finding.advice for finding in found if finding.verdict is Verdict.LIMITED)


def test_a_missing_library_is_told_with_the_command_that_installs_it(cli, monkeypatch):
    def version(name: str) -> str:
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "transformers" else "999.0"

    monkeypatch.setattr("importlib.metadata.version", version)
    shown = cli("doctor")
    assert shown.code == 4
    assert "WRONG peft               is not installed\n" in shown.out
    assert "-> pip install 'peft" in shown.out
    assert "WRONG transformers       0.0.1, but >=" in shown.out
    assert "training cannot run here before this is mended: peft, transformers" in shown.err.replace(
        "transformers, peft", "peft, transformers"
    )


def test_broken_four_bit_arithmetic_is_told(cli, monkeypatch):
    import vgpo_lite.models.nf4_trial

    for error, expected in ((0.5, "is off by 0.50 on"), (float("inf"), "is off by inf on")):
        monkeypatch.setattr(vgpo_lite.models.nf4_trial, "nf4_error", lambda _, error=error: error)
        finding = checkup._four_bits()
        assert finding.verdict is Verdict.WRONG
        assert expected in finding.found
        assert "quantization=none" in finding.advice


def test_four_bits_keep_what_four_bits_can():
    from vgpo_lite.models.nf4_trial import LARGEST_ERROR, nf4_error

    assert 0.05 < nf4_error("cpu") < LARGEST_ERROR


def test_a_recipe_that_does_not_load_is_told(monkeypatch, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "broken.yaml").write_text("sead: 1\n")
    monkeypatch.setattr("vgpo_lite.config.recipes.recipe_root", lambda: tmp_path)
    monkeypatch.setattr("vgpo_lite.config.recipes.recipe_names", lambda kind: ("broken",) if kind == "models" else ())
    finding = checkup._recipes()
    assert finding.verdict is Verdict.WRONG
    assert "sead is not a setting (models/broken, line 1); did you mean seed?" in finding.found


def test_the_findings_come_as_json_too(cli, monkeypatch):
    monkeypatch.setattr(checkup, "findings", lambda: iter([checkup._python()]))
    shown = cli("doctor", "--json")
    assert shown.code == 0
    assert json.loads(shown.out)[0]["subject"] == "Python"
