"""What a run looks like from a terminal, in a log, and when nobody wants to see it."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest

from vgpo_lite.commands import words
from vgpo_lite.commands.display import PlainListener, QuietListener, TerminalListener, watching
from vgpo_lite.data_types import Accuracy, StepReport
from vgpo_lite.listening import Listener, MemoryPhase, MemoryPlan, RunPlan, RunSummary

BEFORE = Accuracy(right=96, total=200, low=0.4118, high=0.5490)
AFTER = Accuracy(right=122, total=200, low=0.5409, high=0.6749)
MEMORY = MemoryPlan(
    phases=(
        MemoryPhase(name="rollout", parts={"weights": 2_000_000_000, "logits": 100_000_000}),
        MemoryPhase(name="update", parts={"weights": 2_000_000_000, "activations": 4_900_000_000}),
    ),
    reserve_bytes=600_000_000,
    limit_bytes=15_600_000_000,
    prompt_tokens=640,
    image_tokens=512,
    choices=("memory.logprob_chunk=128 instead of 256",),
)
PLAN = RunPlan(
    rows_kept=2041,
    rows_dropped={"no image": 3, "the image cannot be decoded": 1},
    rows_held_out=200,
    trainable_parameters=18_464_768,
    total_parameters=2_208_985_600,
    model_bytes=2_310_000_000,
    max_steps=40,
    first_step=1,
    device="NVIDIA T4 [turing]",
    memory=MEMORY,
    notes=("a [bold] note",),
)
REPORT = StepReport(
    step=2,
    metrics={
        "reward/mean": 0.4375,
        "groups/useful_share": 0.75,
        "completions/mean_length": 131.4,
        "focus/early": 0.312,
        "focus/late": 0.184,
        "policy/grad_norm": 0.04213,
        "time/step_seconds": 12.34,
        "memory/peak_bytes": 7.1e9,
    },
)
SUMMARY = RunSummary(
    output="runs/my run",
    steps=40,
    updated_steps=38,
    before=BEFORE,
    after=AFTER,
    seconds=754.0,
    peak_bytes=7_100_000_000,
    peak_is_of_process=False,
    predicted_peak_bytes=6_900_000_000,
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _started_by_name(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/nowhere/vgpo-lite"])


def play(listener: Listener) -> None:
    """A short run, as the trainer tells it."""
    listener.noted("loading tiny")
    listener.progressed("measuring accuracy before", 1, 2)
    listener.planned(PLAN)
    listener.progressed("measuring accuracy before", 2, 2)
    listener.evaluated("before", BEFORE)
    for step in (1, 2):
        listener.progressed("rollout", 10, 64)
        listener.progressed("rollout", 64, 64)
        listener.progressed("update", 1, 4)
        listener.stepped(StepReport(step=step, metrics=REPORT.metrics), 468.9)
    listener.evaluated("after", AFTER)
    listener.finished(SUMMARY)


def test_a_run_that_goes_on_tells_how_long_the_rest_should_take():
    told = dict(words.plan_lines(replace(PLAN, seconds_left=754.0)))
    assert told["time"] == "about 12:34 left, from the steps before"


def test_a_log_gets_plain_lines_and_one_per_step():
    stream = io.StringIO()
    play(PlainListener(stream))
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    assert text.splitlines() == [
        "note: loading tiny",
        "measuring accuracy before (2 in all)",
        "Plan of the run",
        "  rows that train: 2,041",
        "  rows left out: 4: 3 no image; 1 the image cannot be decoded",
        "  rows that measure: 200",
        "  trainable parameters: 18.5 M of 2.21 B",
        "  model in memory: 2.3 GB",
        "  device: NVIDIA T4 [turing]",
        "  steps: 1 to 40",
        "  time: told after the first step, and with every step from then on",
        "  predicted memory: 6.9 GB at most, in update (largest prompt of 640 tokens, 512 of them of images)",
        "    rollout: 2.1 GB: weights 2.0 GB, logits 100.0 MB",
        "    update: 6.9 GB: activations 4.9 GB, weights 2.0 GB",
        "    reserve: 600.0 MB for the card's context and gaps between tensors",
        "  fits: 7.5 GB fits into 15.6 GB",
        "  chosen: memory.logprob_chunk=128 instead of 256",
        "  note: a [bold] note",
        "accuracy before: 48.0 % (96 of 200; 95 % interval 41.2 to 54.9 %)",
        *(
            f"step {step}/40  reward 0.438, useful groups 75 %, length 131, focus early 0.312, late 0.184, "
            "grad norm 0.0421, took 12.3 s, left 7:49"
            for step in (1, 2)
        ),
        "accuracy after: 61.0 % (122 of 200; 95 % interval 54.1 to 67.5 %)",
        "accuracy  right       share         95 % interval",
        "before    96 of 200   48.0 %        41.2 to 54.9 %",
        "after     122 of 200  61.0 %        54.1 to 67.5 %",
        "change                +13.0 points",
        "runs/my run: 40 steps, 38 of them updates, accuracy 48.0 % to 61.0 %, 12:34, peak memory "
        "7.1 GB of tensors (predicted: 6.9 GB of tensors)",
        "Next:",
        "  vgpo-lite merge 'runs/my run' --output 'runs/my run/merged' --verify   # one folder that any program loads",
        "  vgpo-lite eval --adapter 'runs/my run'   # accuracy with and without the adapter",
        "  vgpo-lite inspect 'runs/my run' --output 'runs/my run/inspection.html'   # what it looks at, token by token",
        "  vgpo-lite chat 'runs/my run' --image PICTURE --question 'How many ...?'   # ask it something",
    ]


@pytest.mark.parametrize("listener_of", [PlainListener, lambda stream: TerminalListener(terminal_on(stream))])
def test_measuring_is_suggested_only_where_the_run_measured(listener_of):
    stream = io.StringIO()
    listener_of(stream).finished(replace(SUMMARY, before=None, after=None))
    assert " merge " in stream.getvalue()
    assert " eval " not in stream.getvalue()
    assert "accuracy" not in stream.getvalue()


def terminal_on(stream: io.StringIO):
    from rich.console import Console

    return Console(file=stream, width=200, highlight=False)


def test_a_terminal_gets_the_plan_a_bar_and_a_table():
    from rich.console import Console

    stream = Terminal()
    listener = TerminalListener(Console(file=stream, force_terminal=True, width=160, highlight=False))
    play(listener)
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    for expected in (
        "2,041",
        "NVIDIA T4 [turing]",
        "a [bold] note",
        "accuracy before: 48.0 % (96 of 200; 95 % interval 41.2 to 54.9 %)",
        "reward 0.438",
        "focus early 0.312",
        "2/40 left 7:49  reward 0.438  useful groups 75 %  length 131",
        "rollout",
        "+13.0 points",
        "38 of them updates",
        "vgpo-lite merge 'runs/my run' --output 'runs/my run/merged' --verify",
    ):
        assert expected in seen, expected


def test_a_terminal_keeps_twenty_lines_of_a_long_run():
    from rich.console import Console

    stream = Terminal()
    listener = TerminalListener(Console(file=stream, force_terminal=True, width=160, highlight=False))
    listener.planned(PLAN)
    for step in range(1, 41):
        listener.stepped(StepReport(step=step, metrics=REPORT.metrics), 1.0)
    listener.close()
    kept = re.findall(r"step +(\d+)", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()))
    assert kept == ["1", *(str(step) for step in range(2, 41, 2))]


def test_quiet_says_one_line():
    stream = io.StringIO()
    play(QuietListener(stream))
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().startswith("runs/my run: 40 steps")


def test_a_run_that_measured_nothing_shows_no_table():
    stream = io.StringIO()
    unmeasured = RunSummary(
        output="runs/x",
        steps=3,
        updated_steps=3,
        before=None,
        after=None,
        seconds=9.0,
        peak_bytes=10,
        peak_is_of_process=True,
        predicted_peak_bytes=8,
    )
    PlainListener(stream).finished(unmeasured)
    assert "interval" not in stream.getvalue()
    assert stream.getvalue().startswith(
        "runs/x: 3 steps, 3 of them updates, 9.0 s, peak memory 10 bytes of the whole process "
        "(predicted: 8 bytes of tensors)\n"
    )


@pytest.mark.parametrize(
    ("stream", "quiet", "kind"),
    [
        (io.StringIO(), False, PlainListener),
        (io.StringIO(), True, QuietListener),
        (Terminal(), False, TerminalListener),
        (Terminal(), True, QuietListener),
    ],
)
def test_where_stdout_leads_decides_who_watches(monkeypatch, stream, quiet, kind):
    monkeypatch.setattr("sys.stdout", stream)
    with watching(quiet=quiet) as listener:
        assert type(listener) is kind


def test_the_bar_leaves_when_a_run_ends_early(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setenv("TERM", "xterm")

    def fail() -> None:
        with watching() as listener:
            listener.planned(PLAN)
            listener.progressed("rollout", 1, 2)
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        fail()
    assert stream.getvalue().rstrip("\r\n").endswith(("\x1b[?25h", "\x1b[2K"))  # the cursor is back, the bar erased


@pytest.mark.parametrize(
    ("argv", "on_path", "expected"),
    [
        ("cli.py", False, "python cli.py"),
        ("/somewhere/vgpo_lite/__main__.py", False, "python -m vgpo_lite"),
        ("/usr/bin/vgpo-lite", True, "vgpo-lite"),
        ("missing/vgpo-lite", False, "vgpo-lite"),
    ],
)
def test_commands_to_copy_start_as_this_one_did(monkeypatch, argv, on_path, expected):
    monkeypatch.setattr("sys.argv", [argv])
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/vgpo-lite" if on_path else None)
    assert words.program() == expected


def test_a_program_off_the_path_is_named_by_its_place(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vgpo-lite").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "bin" / "vgpo-lite")])
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert words.program() == "bin/vgpo-lite"
