from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from vgpo_lite.checkpoint import (
    Checkpoint,
    checkpoint_folder,
    checkpoints,
    generator_states,
    load_checkpoint,
    newest_checkpoint,
    restore_generators,
    save_checkpoint,
)
from vgpo_lite.errors import CheckpointError
from vgpo_lite.storage import sweep


def checkpoint_of(step: int) -> Checkpoint:
    parameter = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.grad = torch.ones_like(parameter) * step
    optimizer.step()
    return Checkpoint(
        step=step,
        progress={"draws": 4 * step, "identity": {"model": "m"}},
        adapter={"layer.lora_B": parameter.detach()},
        optimizer=optimizer.state_dict(),
        generators=generator_states(),
        pending={"0.rewards": torch.tensor([0.0, 1.0])},
    )


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = checkpoint_of(3)
    read = load_checkpoint(save_checkpoint(tmp_path, written, keep=2))
    assert (read.step, read.progress) == (3, written.progress)
    torch.testing.assert_close(dict(read.adapter), dict(written.adapter), rtol=0, atol=0)
    torch.testing.assert_close(dict(read.pending), dict(written.pending), rtol=0, atol=0)
    torch.testing.assert_close(read.optimizer, dict(written.optimizer), rtol=0, atol=0)


def test_an_optimizer_goes_on_from_its_checkpoint_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    def optimizer_after(steps: int) -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
        parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = torch.optim.AdamW([parameter], lr=0.1)
        for step in range(steps):
            parameter.grad = torch.tensor([0.5, 0.1 * step])
            optimizer.step()
        return parameter, optimizer

    undisturbed, _ = optimizer_after(5)
    stopped, optimizer = optimizer_after(3)
    saved = Checkpoint(
        step=3, progress={}, adapter={"w": stopped.detach()}, optimizer=optimizer.state_dict(), generators={}
    )
    read = load_checkpoint(save_checkpoint(tmp_path, saved, keep=2))
    resumed = torch.nn.Parameter(read.adapter["w"])
    optimizer = torch.optim.AdamW([resumed], lr=0.7)
    optimizer.load_state_dict(dict(read.optimizer))
    for step in range(3, 5):
        resumed.grad = torch.tensor([0.5, 0.1 * step])
        optimizer.step()
    assert torch.equal(resumed, undisturbed)


def test_the_oldest_checkpoints_beyond_the_kept_ones_go(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, checkpoint_of(step), keep=2)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-000002", "step-000010"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "manifest"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, checkpoint_of(step), keep=2)
    victim = checkpoint_folder(tmp_path, 2) / ("manifest.json" if damage == "manifest" else "adapter.safetensors")
    data = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(data[:-1] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    found, notes = newest_checkpoint(tmp_path)
    assert found.step == 1
    assert len(notes) == 1
    assert "step-000002 is damaged" in notes[0]


def test_no_whole_checkpoint_is_an_error_and_never_a_fresh_start(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, checkpoint_of(1), keep=2)
    (folder / "optimizer.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors does not match its manifest") as caught:
        newest_checkpoint(tmp_path)
    assert caught.value.exit_code == 3


def test_what_a_killed_process_left_is_invisible_and_swept(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint_of(1), keep=2)
    for name in (".tmp-step-000002-77", ".trash-step-000000-77"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter.safetensors").write_bytes(b"half")
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-000001"]
    sweep(tmp_path)
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-000001"]


def test_every_generator_draws_again_what_it_drew_after_the_checkpoint() -> None:
    def draws() -> tuple[float, float, float]:
        return float(torch.rand(())), random.random(), float(np.random.rand())

    states = generator_states()
    first = draws()
    restore_generators(states)
    assert draws() == first


def test_the_state_of_an_8_bit_optimizer_survives_with_its_tables(tmp_path: Path) -> None:
    from bitsandbytes.optim import AdamW8bit

    def stepped(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            for parameter in parameters:
                parameter.grad = torch.sin(torch.arange(parameter.numel()) + step).reshape(parameter.shape)
            optimizer.step()

    def fresh() -> list[torch.nn.Parameter]:
        # 8-bit states from 4,096 elements on, 32-bit ones below (bitsandbytes' min_8bit_size)
        return [torch.nn.Parameter(torch.ones(64, 128)), torch.nn.Parameter(torch.ones(8))]

    whole = fresh()
    stepped(whole, AdamW8bit(whole, lr=0.1), range(4))
    half = fresh()
    optimizer = AdamW8bit(half, lr=0.1)
    stepped(half, optimizer, range(2))
    adapter = {str(index): parameter.detach() for index, parameter in enumerate(half)}
    saved = Checkpoint(step=2, progress={}, adapter=adapter, optimizer=optimizer.state_dict(), generators={})
    read = load_checkpoint(save_checkpoint(tmp_path, saved, keep=2))
    resumed = [torch.nn.Parameter(read.adapter[str(index)]) for index in range(2)]
    optimizer = AdamW8bit(resumed, lr=0.1)
    optimizer.load_state_dict(dict(read.optimizer))
    stepped(resumed, optimizer, range(2, 4))
    for left, right in zip(whole, resumed, strict=True):
        assert torch.equal(left, right)
