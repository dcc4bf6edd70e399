"""Each phase of a step has its own seconds and its own peak of memory, and the highest of all is not forgotten."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import pytest
import torch

import vgpo_lite.costs as costs_module
import vgpo_lite.memory as memory_module
from tests.cheap_runs import lent, small_config
from vgpo_lite.costs import Costs
from vgpo_lite.data_types import StepReport
from vgpo_lite.listening import SilentListener
from vgpo_lite.memory import begin_peak, peak_bytes
from vgpo_lite.trainer import train
from vgpo_lite.units import memory

CPU = torch.device("cpu")
MEGABYTE = 1_000_000


class Device:
    """A clock and a counter of memory that move as they are told."""

    def __init__(self, *, begins_anew: bool = True) -> None:
        self.seconds, self.held, self.peak, self.begins_anew = 0.0, 0, 0, begins_anew

    def pass_by(self, seconds: float, *, peak: int) -> None:
        self.seconds += seconds
        self.peak = max(self.peak, peak)

    def break_down(self, seconds: float, *, peak: int) -> None:
        self.pass_by(seconds, peak=peak)
        raise ValueError("broken")

    def begin_peak(self, device: torch.device) -> bool:
        if self.begins_anew:
            self.peak = self.held
        return self.begins_anew


def told_by(device: Device, monkeypatch: pytest.MonkeyPatch) -> Costs:
    monkeypatch.setattr(costs_module.time, "perf_counter", lambda: device.seconds)
    monkeypatch.setattr(costs_module, "peak_bytes", lambda _: device.peak)
    monkeypatch.setattr(costs_module, "begin_peak", device.begin_peak)
    return Costs(CPU)


def a_step(device: Device, costs: Costs) -> None:
    device.pass_by(100.0, peak=70)  # between steps
    with costs.phase("sampling"):
        device.pass_by(1.0, peak=40)
        with costs.phase("grading"):
            device.pass_by(0.25, peak=5)
        device.pass_by(2.0, peak=30)
    with costs.phase("updating"):
        for forward, backward in ((20, 50), (60, 45)):
            with costs.phase("looking"):
                device.pass_by(4.0, peak=forward)
            device.pass_by(8.0, peak=backward)


def test_a_phase_inside_another_interrupts_it_and_each_has_its_own_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    costs = told_by(device, monkeypatch)
    a_step(device, costs)
    expected = {
        "time/sampling_seconds": 3.0,
        "time/grading_seconds": 0.25,
        "time/looking_seconds": 8.0,
        "time/updating_seconds": 16.0,
        "time/step_seconds": 27.25,
        "memory/sampling_peak_bytes": 40.0,
        "memory/grading_peak_bytes": 5.0,
        "memory/looking_peak_bytes": 60.0,
        "memory/updating_peak_bytes": 50.0,
        "memory/peak_bytes": 70.0,  # outside of any phase
    }
    assert costs.end_step() == expected
    device.pass_by(0.0, peak=10)
    with costs.phase("updating"):
        device.pass_by(1.0, peak=20)
    device.held = 2
    assert costs.end_step() == {
        "time/updating_seconds": 1.0,
        "time/step_seconds": 1.0,
        "memory/updating_peak_bytes": 20.0,
        "memory/peak_bytes": 70.0,
    }


def test_where_no_peak_begins_anew_no_phase_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(begins_anew=False)
    costs = told_by(device, monkeypatch)
    a_step(device, costs)
    told = costs.end_step()
    assert {name: value for name, value in told.items() if name.startswith("memory/")} == {"memory/peak_bytes": 70.0}
    assert told["time/step_seconds"] == 27.25


def test_a_phase_that_an_error_ends_has_what_passed_in_it_and_leaves_the_outer_one_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device()
    costs = told_by(device, monkeypatch)
    with costs.phase("sampling"):
        device.pass_by(1.0, peak=10)
        with pytest.raises(ValueError, match="broken"), costs.phase("grading"):
            device.break_down(4.0, peak=80)
        device.pass_by(2.0, peak=20)
    device.pass_by(8.0, peak=1)  # in no phase
    assert costs.end_step() == {
        "time/sampling_seconds": 3.0,
        "time/grading_seconds": 4.0,
        "time/step_seconds": 7.0,
        "memory/sampling_peak_bytes": 20.0,
        "memory/grading_peak_bytes": 80.0,
        "memory/peak_bytes": 80.0,
    }


def test_the_peak_of_a_cpu_phase_is_the_highest_resident_size_while_it_lasted() -> None:
    costs = Costs(CPU)
    with costs.phase("sampling"):
        touch(200 * MEGABYTE)
    with costs.phase("updating"):
        touch(20 * MEGABYTE)
    told = costs.end_step()
    more = told["memory/sampling_peak_bytes"] - told["memory/updating_peak_bytes"]
    assert more == pytest.approx(180 * MEGABYTE, abs=10 * MEGABYTE)
    assert told["memory/peak_bytes"] >= told["memory/sampling_peak_bytes"]
    assert costs.highest_bytes >= told["memory/peak_bytes"]


def touch(size: int) -> None:
    """Take memory from the system itself, as an allocator may hold some that is resident, and give it back at once."""
    with mmap.mmap(-1, size) as room:
        for place in range(0, size, mmap.PAGESIZE):
            room[place] = 1


@pytest.mark.parametrize("missing", ["status", "clear_refs"])
def test_systems_that_let_nobody_begin_a_peak_still_tell_the_whole_one(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmPeak:\t  9 kB\nVmHWM:\t  512 kB\nVmRSS:\t  7 kB\n")
    (tmp_path / "clear_refs").write_text("")
    monkeypatch.setattr(memory_module, "_PROCESS", tmp_path)
    assert begin_peak(CPU)
    assert (tmp_path / "clear_refs").read_text() == "5"
    assert peak_bytes(CPU) == 512 * 1024
    (tmp_path / missing).unlink()
    if missing == "clear_refs":
        (tmp_path / missing).mkdir()  # cannot be written
    assert not begin_peak(CPU)
    assert peak_bytes(CPU) == 512 * 1024 if missing == "clear_refs" else peak_bytes(CPU) > 10 * MEGABYTE


@pytest.mark.parametrize(
    ("status", "is_begun"),
    [
        ("VmHWM:\t  512000 kB\nVmRSS:\t  510000 kB\n", True),  # another thread has let go of something since
        ("VmHWM:\t  512000 kB\nVmRSS:\t  200000 kB\n", False),  # the write was taken, and nothing happened
        ("VmHWM:\t  512000 kB\n", False),
        ("VmRSS:\t  512000 kB\n", False),
    ],
)
def test_a_peak_is_begun_where_the_mark_has_come_down_and_not_where_the_write_was_only_taken(
    status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_begun: bool
) -> None:
    (tmp_path / "status").write_text(f"Name:\tpython\n{status}Threads:\t1\n")
    (tmp_path / "clear_refs").write_text("")
    monkeypatch.setattr(memory_module, "_PROCESS", tmp_path)
    assert begin_peak(CPU) is is_begun


def test_on_a_gpu_the_allocator_s_peak_is_read_when_its_work_is_done_and_begun_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    for name, value in (("synchronize", None), ("max_memory_allocated", 7), ("reset_peak_memory_stats", None)):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name, value=value: (calls.append(name), value)[1])
    costs = Costs(torch.device("cuda", 0))
    with costs.phase("looking"):
        calls.append("work")
    mark = ["synchronize", "max_memory_allocated", "reset_peak_memory_stats"]
    assert calls == [*mark, "work", *mark]
    assert costs.end_step()["memory/looking_peak_bytes"] == 7.0


def steps_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def phases_of(step: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Phases with seconds, and phases with a peak."""
    times = {name.removeprefix("time/").removesuffix("_seconds") for name in step if name.startswith("time/")}
    peaks = {name.removeprefix("memory/").removesuffix("_peak_bytes") for name in step if name.endswith("_peak_bytes")}
    return times - {"step"}, peaks


def test_a_run_tells_each_phase_of_each_step(tmp_path: Path) -> None:
    with lent(tmp_path / "opened"):
        once = train(small_config(tmp_path / "once", max_steps=2))
        train(small_config(tmp_path / "twice", max_steps=2, num_iterations=2))
    first, second = steps_of(tmp_path / "once")
    usual = {"sampling", "grading", "looking", "updating"}
    assert phases_of(first) == (usual | {"checking"},) * 2
    assert phases_of(second) == (usual,) * 2
    for step in (first, second):
        spent = [step[f"time/{name}_seconds"] for name in phases_of(step)[0]]
        assert min(spent) > 0
        assert step["time/step_seconds"] == pytest.approx(sum(spent))
        peaks = [step[f"memory/{name}_peak_bytes"] for name in phases_of(step)[1]]
        assert step["memory/peak_bytes"] >= max(peaks)
    assert first["memory/peak_bytes"] <= second["memory/peak_bytes"] <= once.peak_bytes
    assert json.loads((tmp_path / "once" / "status.json").read_text())["peak_bytes"] == once.peak_bytes
    again = steps_of(tmp_path / "twice")
    assert phases_of(again[0])[0] == usual | {"checking"}
    assert phases_of(again[1])[0] == {"updating"}  # on what the first step sampled and saw


class Needing(SilentListener):
    """Takes 300 MB while the first step updates."""

    is_over = False

    def progressed(self, phase: str, done: int, total: int) -> None:
        if phase == "update" and not self.is_over:
            touch(300 * MEGABYTE)

    def stepped(self, report: StepReport, seconds_left: float) -> None:
        self.is_over = True


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_run_s_peak_is_that_of_all_its_steps(tmp_path: Path, *, is_resumed: bool) -> None:
    run = tmp_path / "run"
    with lent(tmp_path / "opened"):
        if is_resumed:
            train(small_config(run, max_steps=1), listener=Needing())
            summary = train(small_config(run, max_steps=2), resume="auto")
        else:
            summary = train(small_config(run, max_steps=2), listener=Needing())
    first, second = steps_of(run)
    assert first["memory/updating_peak_bytes"] > second["memory/updating_peak_bytes"] + 250 * MEGABYTE
    assert summary.peak_bytes >= second["memory/peak_bytes"] >= first["memory/peak_bytes"]
    assert json.loads((run / "status.json").read_text())["peak_bytes"] == summary.peak_bytes
    assert f"{memory(summary.peak_bytes)} of the whole process measured" in (run / "README.md").read_text()


def test_what_earlier_processes_needed_is_not_taken_for_what_this_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    costs = told_by(device, monkeypatch)
    costs.earlier_bytes = 90
    a_step(device, costs)
    assert (costs.highest_bytes, costs.highest_of_run_bytes, costs.end_step()["memory/peak_bytes"]) == (70, 90, 90.0)
    device.pass_by(1.0, peak=95)
    assert costs.end_step()["memory/peak_bytes"] == 95.0


@pytest.mark.gpu
def test_each_phase_on_a_gpu_has_the_peak_of_its_own_tensors() -> None:
    device = torch.device("cuda", 0)
    torch.ones(MEGABYTE, device=device)
    costs = Costs(device)
    with costs.phase("sampling"):
        torch.ones(50 * MEGABYTE, device=device)
    with costs.phase("updating"):
        torch.ones(5 * MEGABYTE, device=device)
    told = costs.end_step()
    assert told["memory/sampling_peak_bytes"] - told["memory/updating_peak_bytes"] == pytest.approx(180e6, rel=0.05)
    assert costs.highest_bytes == told["memory/peak_bytes"] >= 200e6
