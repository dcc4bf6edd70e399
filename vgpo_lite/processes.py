"""The processes of a run that was launched as several, and what they tell each other.

`accelerate launch` and `torchrun` start the same command several times and number the processes in the environment.
Each holds the whole model and works on groups of its own; what a group came to is told to all, so that every process
knows all of a step and its state is the same everywhere. Nothing is pickled: what is told is JSON and safetensors.

There is one way to talk, `Team.gathered`: everybody tells what came of a piece of work, or the error that ended it, and
hears the others. A process that fails anywhere else tells it where the others talk next. So an error of one ends all.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from vgpo_lite.errors import ConfigError, HardwareError, InterruptedRunError, PeerError, ending
from vgpo_lite.launch import Launch, launched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor
    from torch.nn import Parameter

Item = TypeVar("Item")

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others, the time that torch waits for processes on CPUs."""

_LOOK_UP_SECONDS = 0.002
_NOT_SUPPORTED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a process tells of its work.

    Attributes:
        facts: Ready for JSON.
        tensors: On the CPU.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Team:
    """The processes of a run, seen from one of them; a process alone is a team of one, which talks to nobody."""

    def __init__(self, launch: Launch, *, group: Any = None) -> None:
        self.rank = launch.rank
        self.count = launch.count
        self._group = group
        self._is_over = False
        self._is_lost = False

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def own(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's share of what costs all the same: every `count`-th, beginning with its own number."""
        return items[self.rank :: self.count]

    def gathered(self, work: Callable[[], Told]) -> list[Told]:
        """Do this process's part, tell what came of it, and hear what the others did; in the order of processes.

        Raises:
            PeerError: The work of another process failed.
            InterruptedRunError: A signal stopped another process.
            HardwareError: Another process is gone.
            BaseException: This process's own work failed; all others have been told.
        """
        if self.count == 1:
            return [work()]
        try:
            done = work()
        except BaseException as error:
            self.tell(error)
            raise
        return self._heard(_packed({"facts": done.facts}, done.tensors))

    def tell(self, error: BaseException) -> None:
        """Tell the others why this process ends, unless the run is over for all already."""
        if self.count == 1 or self._is_over:
            return
        end = ending(error)
        number = error.signal_number if isinstance(error, InterruptedRunError) else None
        with contextlib.suppress(HardwareError, PeerError, InterruptedRunError):
            self._heard(_packed({"reason": end.reason, "exit_code": end.exit_code, "signal": number}, {}))
        vars(error)["was_told"] = True

    def meet(self) -> None:
        """Wait until all have come this far; an error of one is an error of all."""
        self.gathered(Told)

    def leave(self) -> None:
        """Wait for the others after an error: when one leaves, the launcher ends the rest, which may still save."""
        if self._is_over and not self._is_lost:
            with contextlib.suppress(HardwareError):
                self._exchange(b"")

    def add_up(self, parameters: Iterable[Parameter]) -> None:
        """Make every process's gradients the sum over all of them, in one message; none where no process has one."""
        if self.count == 1:
            return
        import torch
        from torch import distributed

        own = list(parameters)
        has = torch.tensor([parameter.grad is not None for parameter in own], dtype=torch.float32)
        gradients = [p.detach().new_zeros(p.shape) if p.grad is None else p.grad for p in own]
        device = own[0].device
        bucket = torch.cat([*(gradient.float().flatten() for gradient in gradients), has.to(device)])
        group = self._group if device.type == "cpu" else None  # cards talk through the default group, with NCCL
        self._finished(lambda: distributed.all_reduce(bucket, group=group, async_op=True))
        *parts, has = bucket.split([*(parameter.numel() for parameter in own), len(own)])
        for parameter, part, count in zip(own, parts, has.tolist(), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype).clone() if count else None

    def _heard(self, message: bytes) -> list[Told]:
        heard = [_unpacked(data) for data in self._exchange(message)]
        for rank, (words, _) in enumerate(heard):
            if "reason" in words:
                self._is_over = True
                raise _peer_error(words, f"process {rank} of {self.count}")
        return [Told(facts=words["facts"], tensors=tensors) for words, tensors in heard]

    def _exchange(self, message: bytes) -> list[bytes]:
        """Everybody's message, in the order of processes."""
        import torch
        from torch import distributed

        own = torch.tensor([len(message)])
        lengths = [torch.empty_like(own) for _ in range(self.count)]
        self._finished(lambda: distributed.all_gather(lengths, own, group=self._group, async_op=True))
        longest = max(int(length) for length in lengths)
        if longest == 0:
            return [b""] * self.count
        padded = torch.frombuffer(bytearray(message.ljust(longest, b"\0")), dtype=torch.uint8)
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        self._finished(lambda: distributed.all_gather(parts, padded, group=self._group, async_op=True))
        return [part[: int(length)].numpy().tobytes() for part, length in zip(parts, lengths, strict=True)]

    def _finished(self, begin: Callable[[], Any]) -> None:
        """Wait for a message to pass, in short sleeps, so that signals are heard meanwhile."""
        try:
            work = begin()
            while not work.is_completed():
                time.sleep(_LOOK_UP_SECONDS)
            work.wait()
        except RuntimeError as error:
            self._is_over = self._is_lost = True
            raise HardwareError(
                f"process {self.rank} of {self.count} lost another one, or waited {PATIENCE.seconds // 60} minutes for "
                "it. What that one said is above, or in its machine's log; continue with --resume auto."
            ) from error


def was_told(error: BaseException) -> bool:
    """Whether the other processes have heard of this error, or this process of it from them."""
    return bool(vars(error).get("was_told"))


ALONE = Team(Launch())
_teams = [ALONE]


def team() -> Team:
    """The team that this process works in."""
    return _teams[-1]


@contextlib.contextmanager
def joined(*, on_cards: bool) -> Iterator[Team]:
    """Join the processes that the launcher started beside this one; alone where it started none.

    Whatever ends one of them inside ends all, and none leaves before all have come out.

    Args:
        on_cards: Whether the model is on a GPU: gradients then travel with NCCL, all else with gloo.

    Raises:
        ConfigError: The launcher asks for what a run cannot do.
        HardwareError: The processes do not find each other, or there are more of them than cards.
    """
    launch = launched()
    if launch.count == 1 or team().count > 1:
        yield team()
        return
    _refuse_other_ways()
    with _group(launch, on_cards=on_cards) as group:
        own = Team(launch, group=group)
        _teams.append(own)
        try:
            yield own
            own.meet()
        except BaseException as error:
            own.tell(error)
            raise
        finally:
            _teams.remove(own)
            own.leave()


def _refuse_other_ways() -> None:
    for variable, name in _NOT_SUPPORTED.items():
        if os.environ.get(variable, "").lower() in ("1", "true", "yes"):
            raise ConfigError(
                f"accelerate is configured for {name}, but a run gives every process the whole model. Launch with "
                f"--multi_gpu alone; for {name}, vgpo_lite.integrations.trl.VGPOTrainer brings VGPO to TRL's trainer."
            )


@contextlib.contextmanager
def _group(launch: Launch, *, on_cards: bool) -> Iterator[Any]:
    """The group that messages on the CPU pass through."""
    import torch
    from torch import distributed

    if on_cards:
        cards = torch.cuda.device_count()
        if launch.local_rank >= cards:
            raise HardwareError(
                f"process {launch.rank} is number {launch.local_rank + 1} on this machine, which has {cards} CUDA "
                f"cards. Launch at most {cards} per machine."
            )
        torch.cuda.set_device(launch.local_rank)
    is_ours = not distributed.is_initialized()
    try:
        if is_ours:
            distributed.init_process_group("cpu:gloo,cuda:nccl" if on_cards else "gloo", timeout=PATIENCE)
        group = distributed.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise HardwareError(
            f"process {launch.rank} of {launch.count} did not find the others: {error}. Launch all with the same "
            "`accelerate launch` or `torchrun`, and see that MASTER_ADDR and MASTER_PORT lead to the first."
        ) from error
    try:
        yield group
    finally:
        if is_ours:
            with contextlib.suppress(RuntimeError):
                distributed.destroy_process_group()


def _peer_error(words: Mapping[str, Any], name: str) -> PeerError | InterruptedRunError:
    error = PeerError(f"{name}: {words['reason']}", exit_code=words["exit_code"])
    if words["signal"] is not None:
        error = InterruptedRunError(words["signal"])
    vars(error)["was_told"] = True
    return error


def _packed(words: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """JSON with its length before it, then safetensors."""
    from safetensors.torch import save

    text = json.dumps(words).encode()
    return len(text).to_bytes(8, "little") + text + save({n: tensor.contiguous() for n, tensor in tensors.items()})


def _unpacked(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors.torch import load

    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), load(data[end:])
