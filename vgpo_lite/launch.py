"""Which of how many processes this one is, by the environment of `accelerate launch` or `torchrun`; loads no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vgpo_lite.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Which of how many processes this one was launched as.

    Attributes:
        rank: Its number, from 0; the first alone writes and speaks.
        count: How many there are.
        local_rank: Its number on its own machine, which is that of its card.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0


def launched() -> Launch:
    """What the launcher's environment says: RANK, WORLD_SIZE and LOCAL_RANK; one process where it says nothing.

    Raises:
        ConfigError: It says something that cannot be.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    words = [os.environ.get(name, "") for name in names]
    if not words[0] or not words[1]:
        return Launch()
    try:
        rank, count, local_rank = (int(word or words[0]) for word in words)
        if not 0 <= rank < count or local_rank < 0:
            raise ValueError
    except ValueError:
        said = ", ".join(f"{name}={word!r}" for name, word in zip(names, words, strict=True))
        raise ConfigError(
            f"the launcher says {said}; expected a RANK from 0 to WORLD_SIZE - 1. Unset these variables to run in one "
            "process, or launch with `accelerate launch` or `torchrun`."
        ) from None
    return Launch(rank=rank, count=count, local_rank=local_rank)


def relaunched(alone: str) -> str:
    """What starts this program in as many processes as it has now, on as many machines; RANK and IP are each one's own.

    Args:
        alone: What starts it in one.
    """
    count = launched().count
    if count == 1:
        return alone
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    machines = count // int(here) if here.isdecimal() and int(here) else 1
    where = f" --num_machines {machines} --machine_rank RANK --main_process_ip IP" if machines > 1 else ""
    return f"accelerate launch --multi_gpu --num_processes {count}{where} -m vgpo_lite"
