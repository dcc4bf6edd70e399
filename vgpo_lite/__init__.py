"""vgpo-lite: visually-guided policy optimization for 4-bit vision-language models on one consumer GPU.

>>> from vgpo_lite import load_config
>>> config = load_config(model="qwen2-vl-2b", max_steps=20)
>>> config.model_id, config.max_steps
('Qwen/Qwen2-VL-2B-Instruct', 20)

`train(config)`, `evaluate(config)` and `merge(source, output)` do the rest. Importing the package loads none of the
model libraries: each name is fetched when it is first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vgpo_lite.config.load import load_config as load_config
    from vgpo_lite.evaluation import evaluate as evaluate
    from vgpo_lite.export import merge as merge
    from vgpo_lite.trainer import train as train

__version__ = "0.1.0"

# OpenMP's threads spin while they wait, which on a CPU with anything else to do cost a tiny model 20 times its time.
# The variable is read when torch is imported, so it is set before; whoever has set it keeps their value.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["__version__", "evaluate", "load_config", "merge", "train"]

_HOMES = {
    "evaluate": "vgpo_lite.evaluation",
    "load_config": "vgpo_lite.config.load",
    "merge": "vgpo_lite.export",
    "train": "vgpo_lite.trainer",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = vars(importlib.import_module(_HOMES[name]))[name]
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
