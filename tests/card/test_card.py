"""The cards tell what was trained, repeat it, name nothing of this machine, and their programs run as copied."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests.cheap_runs import lent, small_config
from vgpo_lite.card import TrainingRecord, adapter_card, read_record
from vgpo_lite.card.parts import change_interval, results
from vgpo_lite.commands.chat import own_sample
from vgpo_lite.config.load import load_config
from vgpo_lite.data_types import Accuracy, Sampling
from vgpo_lite.engine import make_engine
from vgpo_lite.errors import CheckpointError
from vgpo_lite.evaluation import wilson_interval
from vgpo_lite.export import merge
from vgpo_lite.listening import SilentListener
from vgpo_lite.models import load_policy
from vgpo_lite.prompts import encode_prompt
from vgpo_lite.trainer import train

if TYPE_CHECKING:
    from pathlib import Path

    from vgpo_lite.listening import RunPlan, RunSummary


@dataclasses.dataclass(frozen=True)
class Ended:
    run: Path
    summary: RunSummary
    had_card: tuple[bool, ...]


class Watcher(SilentListener):
    """Looks whether the run directory holds a card when a run, or its extension, begins."""

    def __init__(self, run: Path) -> None:
        self.run, self.had_card = run, ()

    def planned(self, plan: RunPlan) -> None:
        self.had_card += ((self.run / "README.md").exists(),)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A run of two steps in two processes' worth, with a reward function in a private folder, and its merged model."""
    folder = tmp_path_factory.mktemp("private-folder")
    changes = {"eval": {"limit": 6}, "data": {"limit": 40, "prompt_style": "direct", "prompt_template": None}}
    watcher = Watcher(folder / "run")
    with lent(folder / "lent"):
        train(small_config(folder / "run", max_steps=1, **changes))
        summary = train(small_config(folder / "run", max_steps=2, **changes), listener=watcher, resume="auto")
    merge(folder / "run", folder / "merged", verify=False)
    return Ended(run=folder / "run", summary=summary, had_card=watcher.had_card)


def fenced(card: str, language: str) -> str:
    [block] = re.findall(rf"^```{language}\n(.*?)^```$", card, flags=re.DOTALL | re.MULTILINE)
    return block


def table(card: str) -> dict[str, str]:
    return dict(re.findall(r"^\| ([\w -]+) \| (.*) \|$", card, flags=re.MULTILINE))


def metrics(run: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("place", ["README.md", "adapter/README.md", "../merged/README.md"])
def test_a_card_tells_base_data_recipe_accuracy_cost_and_citation(ended: Ended, place: str) -> None:
    card, summary = (ended.run / place).read_text(), ended.summary
    assert summary.before is not None
    assert summary.after is not None
    facts = table(card)
    for name, accuracy in (("before", summary.before), ("after", summary.after)):
        right, share, interval = facts[name].split(" | ")
        assert right == f"{accuracy.right} of 6"
        assert share == f"{100 * accuracy.right / 6:.1f} %"
        low, high = wilson_interval(accuracy.right, 6)
        assert interval == f"{100 * low:.1f} to {100 * high:.1f} %"
    assert re.fullmatch(r"`tiny`, built into vgpo-lite .* \(fingerprint `[0-9a-f]{32}`\)", facts["base model"])
    assert facts["data set"].startswith("`shapes`, split `train`: 40 rows, fingerprint `")
    assert facts["steps"].startswith("2 updates in 2 steps, learning rate 0.001 (cosine), seed 0")
    assert re.search(
        r"[\d.]+ [GM]B of the whole process measured, [\d.]+ [GM]B of tensors predicted", facts["peak memory"]
    )
    seconds = float(facts["time"].split(" s in steps")[0])
    assert seconds == pytest.approx(sum(metrics(ended.run, "time/step_seconds")), abs=0.051)  # of both processes
    assert all(f"{name} " in facts["software"] for name in ("Python", "torch", "transformers", "peft", "bitsandbytes"))
    assert re.search(r", \d+ threads?, \d+ GB$", facts["hardware"])
    assert "eprint        = {2604.09349}" in fenced(card, "bibtex")


def test_no_card_and_no_file_of_an_adapter_or_merge_names_a_folder_of_this_machine(ended: Ended) -> None:
    files = [ended.run / "README.md"]
    for folder in (ended.run / "adapter", ended.run.parent / "merged"):
        files += [path for path in folder.iterdir() if path.suffix in (".json", ".md")]
    assert len(files) > 10
    for path in files:
        assert "private-folder" not in path.read_text(), path
    assert "rewards.py:letters (weight 1)" in (ended.run / "README.md").read_text()


def test_the_recipe_of_a_card_is_the_run_again(ended: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.yaml").write_text(fenced((ended.run / "README.md").read_text(), "yaml"))
    (tmp_path / "rewards.py").write_text("")
    monkeypatch.chdir(tmp_path)
    again = load_config(recipe="recipe.yaml").model_dump()
    ran = load_config(recipe=str(ended.run / "config.yaml")).model_dump()
    for config in (again, ran):
        config["output"] = None
        config["reward"]["functions"] = list(config["reward"]["functions"].values())
    assert again == ran


@pytest.mark.parametrize("place", [".", "adapter", "../merged"])
def test_the_program_of_a_card_runs_as_copied_and_answers_as_the_policy_does(
    ended: Ended, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    program = fenced((ended.run / place / "README.md").read_text(), "python")
    monkeypatch.chdir(ended.run / place)
    exec(compile(program, "README.md", "exec"), {})  # the card's own words
    answer = capsys.readouterr().out
    config = load_config(recipe=str(ended.run / "config.yaml"), adapter=str(ended.run / "adapter"))
    policy = load_policy(config)
    Image.new("RGB", (224, 224), "white").save(ended.run.parent / "white.png")
    prompt = encode_prompt(
        own_sample("What does the picture show?", [ended.run.parent / "white.png"]), policy.processor, config.data
    )
    greedy = Sampling(num_generations=1, max_completion_length=config.max_completion_length, temperature=0.0)
    [group] = make_engine(policy, config).sample([prompt], greedy, places=[0], on_step=None)
    assert answer == group.texts[0] + "\n"
    assert answer.strip()


def test_the_interval_of_a_change_is_newcombes() -> None:
    def measured(right: int, total: int) -> Accuracy:
        low, high = wilson_interval(right, total)
        return Accuracy(right=right, total=total, low=low, high=high)

    # Newcombe 1998, table II (a): 56/70 - 48/80, method 10: 0.0524 to 0.3339
    assert change_interval(measured(48, 80), measured(56, 70)) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_what_was_not_measured_is_said_and_a_damaged_record_is_refused(ended: Ended, tmp_path: Path) -> None:
    record = read_record(ended.run / "adapter")
    assert record is not None
    unmeasured = dataclasses.replace(record, before=None, after=None)
    assert "Not measured" in results(unmeasured)
    assert "%" not in results(unmeasured)
    assert read_record(tmp_path) is None
    for damage in ("{", "[]", '{"model": "tiny"}'):
        (tmp_path / "training.json").write_text(damage)
        with pytest.raises(CheckpointError, match=r"training\.json is damaged, or another version"):
            read_record(tmp_path)


def test_a_hub_model_is_named_with_its_commit_and_a_cell_cannot_break_its_table() -> None:
    record = TrainingRecord(
        model="owner/base",
        revision="c" * 40,
        dataset="owner/rows",
        title="base trained on rows",
        before=None,
        after=None,
        facts={"data set": "a|b\nc"},
        recipe="model: owner/base\n",
        example='Say "yes"\nor no.',
        max_new_tokens=7,
        image_options={"min_pixels": 784, "size": {"longest_edge": 512}},
        quantization="nf4",
    )
    card = adapter_card(record)
    assert "base_model: owner/base\nbase_model_relation: adapter\ndatasets:\n- owner/rows\n" in card
    assert "| data set | a\\|b c |" in card
    program = fenced(card, "python")
    compile(program, "card", "exec")
    assert f'from_pretrained(base, revision="{"c" * 40}", dtype="auto"' in program
    assert (
        f'AutoProcessor.from_pretrained(base, revision="{"c" * 40}", min_pixels=784, size={{"longest_edge": 512}})'
        in program
    )
    assert 'text = "Say \\"yes\\"\\nor no."' in program
    assert "trained over NF4 weights" in card


def test_a_run_that_goes_on_has_no_card_of_its_earlier_end(ended: Ended) -> None:
    assert ended.had_card == (False,)
    assert (ended.run / "README.md").is_file()
