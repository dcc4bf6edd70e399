"""Each command parses, makes one call, and shows what came of it; stand-ins take the place of the model stack."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.report.runs import make_run
from vgpo_lite.config.load import load_config
from vgpo_lite.config.recipes import recipe_names
from vgpo_lite.config.settings import settings
from vgpo_lite.data_types import Accuracy
from vgpo_lite.listening import RunSummary
from vgpo_lite.report.charts import charts_of

WITHOUT = Accuracy(right=96, total=200, low=0.4118, high=0.5490)
WITH = Accuracy(right=122, total=200, low=0.5409, high=0.6749)


class Calls:
    """Remembers what a stand-in was called with."""

    def __init__(self, result=None) -> None:
        self.made: list[tuple[tuple, dict]] = []
        self.result = result

    def __call__(self, *args, **kwargs):
        self.made.append((args, kwargs))
        return self.result(*args, **kwargs) if callable(self.result) else self.result


def finished(config, *, listener, resume) -> RunSummary:
    summary = RunSummary(
        output=config.output_folder,
        steps=2,
        updated_steps=2,
        before=WITHOUT,
        after=WITH,
        seconds=3.0,
        peak_bytes=10**9,
        peak_is_of_process=True,
        predicted_peak_bytes=10**8,
    )
    listener.finished(summary)
    return summary


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A finished run, as far as the commands look at it."""
    folder = tmp_path / "run"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "config.yaml").write_text(
        "max_completion_length: 33\nadapter: an/earlier/one\ndata:\n  prompt_style: direct\n"
    )
    return folder


def test_train_turns_every_flag_into_a_setting(cli, stand_in, run_folder):
    train = Calls(finished)
    stand_in("vgpo_lite.trainer", train=train)
    shown = cli(
        *("train", "-m", "qwen2-vl-2b", "-d", "geo3k", "-r", "dapo-baseline", "-o", "out", "--max-steps", "7"),
        *("--seed", "5", "--adapter", str(run_folder), "--resume", "auto", "--report-to", "wandb"),
        *("--set", "focus.beta=0.1", "--set", "learning_rate=1e-5"),
    )
    assert shown.code == 0, shown.err
    [((config,), named)] = train.made
    assert named["resume"] == "auto"
    assert config == load_config(
        "dapo-baseline",
        model="qwen2-vl-2b",
        dataset="geo3k",
        overrides=["focus.beta=0.1", "learning_rate=1e-5"],
        output="out",
        max_steps=7,
        seed=5,
        adapter=str(run_folder / "adapter"),
        report_to="wandb",
    )
    assert config.sources["max_steps"] == "--max-steps"
    assert "note: model qwen2-vl-2b, data set geo3k, run directory out" in shown.out
    assert "+13.0 points" in shown.out


def test_train_without_arguments_is_the_built_in_run(cli, stand_in):
    train = Calls(finished)
    stand_in("vgpo_lite.trainer", train=train)
    assert cli("train").code == 0
    [((config,), named)] = train.made
    assert (config.model, config.dataset, config.output_folder) == ("tiny", "shapes", "runs/tiny-shapes")
    assert named["resume"] == "never"


def test_quiet_training_says_one_line(cli, stand_in):
    stand_in("vgpo_lite.trainer", train=finished)
    assert len(cli("train", "--quiet").out.splitlines()) == 1


def test_a_dry_run_shows_values_with_their_sources_and_trains_nothing(cli, stand_in):
    train = Calls(finished)
    stand_in("vgpo_lite.trainer", train=train)
    shown = cli("train", "--dry-run", "-m", "qwen2-vl-2b", "--set", "focus.beta=0.1", "-o", "somewhere")
    assert shown.code == 0
    assert train.made == []
    rows = {line.split()[0]: line for line in shown.out.splitlines() if line.strip()}
    assert rows["focus.beta"].split(maxsplit=2)[1:] == ["0.1", "--set focus.beta=0.1"]
    assert rows["model_id"].split(maxsplit=2)[1:] == ["Qwen/Qwen2-VL-2B-Instruct", "model recipe qwen2-vl-2b, line 2"]
    assert rows["temperature"].split()[1:] == ["1.0", "default"]
    assert set(settings()) <= set(rows)
    assert "The run directory would be somewhere." in shown.out


def test_resume_takes_auto_never_or_a_folder(cli, stand_in, tmp_path):
    train = Calls(finished)
    stand_in("vgpo_lite.trainer", train=train)
    shown = cli("train", "--resume", "atuo")
    assert (shown.code, shown.err) == (
        2,
        "error: --resume is 'atuo'; expected auto, never or the folder of a checkpoint.\n",
    )
    assert cli("train", "--resume", str(tmp_path)).code == 0
    assert train.made[0][1]["resume"] == str(tmp_path)


def test_an_existing_run_is_refused_before_anything_is_loaded(cli, stand_in, tmp_path):
    train = Calls(finished)
    stand_in("vgpo_lite.trainer", train=train)
    (tmp_path / "status.json").write_text("{}")
    assert cli("train", "-o", str(tmp_path)).code == 0  # what failed before its first checkpoint is begun anew
    train.made.clear()
    (tmp_path / "checkpoints" / "step-000000").mkdir(parents=True)
    shown = cli("train", "-o", str(tmp_path))
    assert shown.code == 2
    assert "already holds a run. Continue it with --resume auto, or choose another --output." in shown.err
    assert train.made == []
    assert cli("train", "-o", str(tmp_path), "--resume", "auto").code == 0


def measured(config, *, listener) -> Accuracy:
    return WITHOUT if config.adapter is None else WITH


def test_eval_measures_without_and_with_the_adapter(cli, stand_in, run_folder):
    evaluate = Calls(measured)
    stand_in("vgpo_lite.evaluation", evaluate=evaluate)
    shown = cli("eval", "--adapter", str(run_folder), "--limit", "50")
    assert shown.code == 0, shown.err
    configs = [args[0] for args, _ in evaluate.made]
    assert [config.adapter for config in configs] == [None, str(run_folder / "adapter")]
    assert all((config.eval.limit, config.max_completion_length) == (50, 33) for config in configs)
    assert shown.out.splitlines()[-4:] == [
        "accuracy         right       share         95 % interval",
        "without adapter  96 of 200   48.0 %        41.2 to 54.9 %",
        "with adapter     122 of 200  61.0 %        54.1 to 67.5 %",
        "change                       +13.0 points",
    ]


def test_eval_of_a_model_alone_measures_once(cli, stand_in):
    evaluate = Calls(measured)
    stand_in("vgpo_lite.evaluation", evaluate=evaluate)
    shown = cli("eval", "--model", "qwen2-vl-2b", "--dataset", "mathvista")
    assert len(evaluate.made) == 1
    assert shown.out.splitlines()[-1].split() == [
        "qwen2-vl-2b",
        "96",
        "of",
        "200",
        "48.0",
        "%",
        "41.2",
        "to",
        "54.9",
        "%",
    ]


def test_eval_prints_json_and_nothing_else(cli, stand_in, run_folder):
    stand_in("vgpo_lite.evaluation", evaluate=measured)
    result = json.loads(cli("eval", "--adapter", str(run_folder), "--json").out)
    assert result["after"] == {"right": 122, "total": 200, "accuracy": 0.61, "low": 0.5409, "high": 0.6749}
    assert (result["model"], result["dataset"], result["before"]["accuracy"]) == ("tiny", "shapes", 0.48)


def replayed(run, step, *, overrides, listener):
    changed = {"advantage": ("vgpo", "grpo")} if overrides else {}
    numbers = SimpleNamespace(loss=-0.3749250173, grad_norm=0.0625)
    now = SimpleNamespace(loss=-0.125 if overrides else numbers.loss, grad_norm=0.0625)
    return SimpleNamespace(step=step, groups=2, tokens=1440, changed=changed, recorded=numbers, replayed=now)


def test_replay_shows_recorded_and_replayed_side_by_side(cli, stand_in, run_folder):
    replay_step = Calls(replayed)
    stand_in("vgpo_lite.replay", replay_step=replay_step)
    shown = cli("replay", str(run_folder), "--step", "12", "--set", "advantage=grpo")
    assert shown.code == 0, shown.err
    [((run, step), named)] = replay_step.made
    assert (run, step, named["overrides"]) == (run_folder, 12, ["advantage=grpo"])
    assert shown.out.splitlines() == [
        "step 12: 2 groups, 1,440 tokens",
        "advantage: vgpo in the run, grpo in the replay",
        "           recorded      replayed  difference",
        "loss       -0.374925017  -0.125    0.25",
        "grad norm  0.0625        0.0625    0",
    ]
    assert "note" not in cli("replay", str(run_folder), "--step", "12").out


def test_replay_tells_when_a_step_does_not_come_again_and_prints_json(cli, stand_in, run_folder):
    def other(run, step, **named):
        report = replayed(run, step, **named)
        report.replayed = SimpleNamespace(loss=float("nan"), grad_norm=0.0626)
        return report

    stand_in("vgpo_lite.replay", replay_step=other)
    shown = cli("replay", str(run_folder), "--step", "12")
    assert "loss       -0.374925017  nan       -" in shown.out
    assert "note: they differ by more than 1e-06" in shown.out
    result = json.loads(cli("replay", str(run_folder), "--step", "12", "--json").out)
    assert result["loss"] == {"recorded": -0.3749250173, "replayed": None}
    assert result["grad_norm"] == {"recorded": 0.0625, "replayed": 0.0626}


def test_replay_without_a_step_lists_those_that_are_kept(cli, stand_in, run_folder):
    kept = [
        (SimpleNamespace(step=3, groups=0, tokens=0, loss=None, grad_norm=0.0), "no: it trained on nothing"),
        (SimpleNamespace(step=4, groups=2, tokens=1440, loss=0.5, grad_norm=0.25), None),
    ]
    stand_in("vgpo_lite.journal", kept_steps=lambda run: kept)
    assert cli("replay", str(run_folder)).out.splitlines() == [
        "step  groups  tokens  loss  grad norm  can be replayed",
        "3     0       0                        no: it trained on nothing",
        "4     2       1,440   0.5   0.25       yes",
    ]
    steps = json.loads(cli("replay", str(run_folder), "--json").out)["steps"]
    assert [(each["step"], each["replayable"]) for each in steps] == [(3, False), (4, True)]


def test_replay_of_no_run_ends_with_its_code(cli, run_folder):
    assert cli("replay", "nowhere").code == 2
    shown = cli("replay", str(run_folder), "--step", "0")
    assert shown.code == 2
    shown = cli("replay", str(run_folder), "--step", "1")
    assert (shown.code, "holds no journal of its steps" in shown.err) == (3, True)


def report(folder, output, *, base, verify):
    compared = SimpleNamespace(merged_gap=0.00123, adapter_gap=1.5, greedy=0.995, positions=51)
    return SimpleNamespace(
        notes=("bfloat16 was given up: it keeps 3 % of the update",),
        layers=14,
        model_id="tiny",
        dtype="float32",
        rounding_error=0.0042,
        agreement=compared if verify else None,
        output=str(output),
    )


def test_merge_says_how_the_result_compares(cli, stand_in, run_folder):
    merge = Calls(report)
    stand_in("vgpo_lite.export", merge=merge)
    shown = cli("merge", str(run_folder), "-o", "out", "--base", "original")
    assert shown.code == 0, shown.err
    assert merge.made == [((run_folder, Path("out")), {"base": "original", "verify": True})]
    for expected in ("14 layers of tiny", "0.42 %", "0.00123", "99.5 % of 51", "out is ready", "note: bfloat16"):
        assert expected in shown.out


def test_merge_writes_into_the_run_unless_told_where(cli, stand_in, run_folder):
    merge = Calls(report)
    stand_in("vgpo_lite.export", merge=merge)
    shown = cli("merge", str(run_folder), "--no-verify")
    assert merge.made[0][0][1] == run_folder / "merged"
    assert "not compared" in shown.out


def test_merge_refuses_another_base(cli, run_folder):
    shown = cli("merge", str(run_folder), "--base", "orignal")
    assert (shown.code, shown.err) == (2, "error: --base is 'orignal'; expected dequantized or original.\n")
    assert cli("merge", str(run_folder) + "x").code == 2


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--image", "missing.png", "-q", "How many?"], 2, "there is no picture missing.png"),
        (["--image", "words.png", "-q", "How many?"], 3, "the picture words.png cannot be used"),
        (["--image", "red.png", "-q", "<image> and <image>?"], 3, "the question cannot be asked"),
        (["--image", "red.png", "-q", ""], 3, "the question cannot be asked"),
        (["--image", "red.png", "-q", "How many?", "--temperature", "-1"], 2, "--temperature"),
    ],
)
def test_chat_refuses_what_cannot_be_asked(cli, tmp_path, monkeypatch, arguments, code, expected):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Path("words.png").write_text("no picture")
    Image.new("RGB", (56, 56), "red").save("red.png")
    shown = cli("chat", "tiny", *arguments)
    assert shown.code == code
    assert expected in shown.err


def test_chat_places_pictures_where_the_question_says(tmp_path):
    from PIL import Image

    from vgpo_lite.commands.chat import own_sample

    paths = []
    for colour in ("red", "blue"):
        paths.append(tmp_path / f"{colour}.png")
        Image.new("RGB", (56, 56), colour).save(paths[-1])
    sample = own_sample("Is <image_2> like <image_1>?", paths)
    assert sample.question == "Is <image> like <image>?"
    assert [image.getpixel((0, 0)) for image in sample.images] == [(0, 0, 255), (255, 0, 0)]
    assert own_sample("How many?", paths[:1]).question == "<image>How many?"


@pytest.mark.parametrize(
    ("model", "options", "style", "template"),
    [
        ("qwen2-vl-2b", ["--dataset", "geo3k"], "reasoning", None),
        ("tiny", ["-d", "shapes"], "reasoning", "{{ question }}"),
        ("tiny", ["-d", "geo3k", "--set", "data.prompt_style=direct"], "direct", None),
    ],
)
def test_chat_asks_as_the_rows_of_a_data_set_are_asked(cli, monkeypatch, tmp_path, model, options, style, template):
    from PIL import Image

    asked = []
    monkeypatch.setattr("vgpo_lite.commands.chat._answer", lambda config, *_: asked.append(config) or "four")
    Image.new("RGB", (56, 56), "red").save(tmp_path / "red.png")
    shown = cli("chat", model, *options, "--image", str(tmp_path / "red.png"), "-q", "How many?")
    assert (shown.code, shown.out) == (0, "four\n")
    assert (asked[0].data.prompt_style, asked[0].data.prompt_template) == (style, template)


def test_a_format_that_a_model_cannot_be_computed_in_gets_no_plan(cli):
    shown = cli("plan", "-m", "gemma3-4b", "--gpu", "t4", "--pixels", "401408")
    assert (shown.code, shown.out) == (4, "")
    assert "gemma3-4b computes numbers that float16 cannot hold" in shown.err


def test_recipe_list_names_every_recipe_with_its_flag(cli):
    shown = cli("recipe", "list")
    assert shown.code == 0
    for kind, flag in (("models", "--model"), ("datasets", "--dataset"), ("runs", "--recipe")):
        assert f"{kind}  ({flag} NAME)" in shown.out
        for name in recipe_names(kind):
            assert f"  {name} " in shown.out


def test_recipe_show_prints_the_file_and_the_defaults(cli):
    assert yaml.safe_load(cli("recipe", "show", "vgpo").out)["focus"]["signal"] == "similarity"
    assert yaml.safe_load(cli("recipe", "show", "models/qwen2-vl-2b").out) == {"model_id": "Qwen/Qwen2-VL-2B-Instruct"}
    assert "# learning_rate: 5.0e-06" in cli("recipe", "show", "defaults").out
    shown = cli("recipe", "show", "vgop")
    assert (shown.code, shown.err) == (2, "error: there is no recipe vgop; did you mean vgpo?\n")


def test_recipe_copy_never_overwrites(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "vgpo.yaml written. Edit it, then: vgpo-lite train --recipe vgpo.yaml" in cli("recipe", "copy", "vgpo").out
    assert load_config("vgpo.yaml") == load_config("vgpo")
    again = cli("recipe", "copy", "vgpo")
    assert (again.code, again.err) == (2, "error: vgpo.yaml exists already; choose another name for the copy.\n")
    assert cli("recipe", "copy", "defaults", "all.yaml").code == 0
    assert load_config("all.yaml") == load_config()
    assert "no folder" in cli("recipe", "copy", "vgpo", "no/such/x.yaml").err
    (tmp_path / "folder").mkdir()
    cli("recipe", "copy", "vgpo", "folder")
    assert (tmp_path / "folder" / "vgpo.yaml").is_file()


def test_recipe_check_tells_the_fine_from_the_broken(cli, tmp_path):
    assert cli("recipe", "check").code == 0
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("seed: 1\n")
    bad.write_text("sead: 1\nfocus: {beta: -1}\n")
    shown = cli("recipe", "check", str(good), str(bad))
    assert shown.code == 2
    assert shown.out == f"{good}: fine\n"
    assert "sead is not a setting" in shown.err
    assert "focus.beta is -1" in shown.err


def test_report_draws_into_the_run_or_elsewhere_and_names_what_is_wrong(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("vgpo_lite.report.writing.charts_of", lambda runs: charts_of(runs)[:1])
    make_run(tmp_path / "run")
    shown = cli("report", "run")
    assert (shown.code, shown.out) == (0, "run/report.html written, pictures in run/plots\n")
    assert [path.name for path in (tmp_path / "run" / "plots").iterdir()] == ["reward.png"]
    assert cli("report", "run", "-o", "out/mine.html").code == 0
    assert (tmp_path / "out" / "mine-plots" / "reward.png").is_file()
    missing = cli("report", "rn")
    assert (missing.code, missing.err) == (2, "error: there is no folder rn; did you mean run?\n")
    empty = cli("report", "out")
    assert (empty.code, "out holds no run" in empty.err) == (3, True)
