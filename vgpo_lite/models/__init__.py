"""The only room that knows transformers, peft, bitsandbytes and unsloth.

What it offers is fetched when it is first used: a backend that patches transformers must be imported before that.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vgpo_lite.models.hub import model_files as model_files
    from vgpo_lite.models.loading import chosen_device as chosen_device
    from vgpo_lite.models.loading import load_policy as load_policy
    from vgpo_lite.models.loading import processor_alone as processor_alone
    from vgpo_lite.models.policy import Policy as Policy

__all__ = ["Policy", "chosen_device", "load_policy", "model_files", "processor_alone"]

# On a CPU bitsandbytes looks for a package of kernels, logs that it is not there, and carries on without. transformers
# logs in which format it dequantizes, which a merge decides and reports itself.
for _name in ("bitsandbytes.backends.cpu.ops", "transformers.integrations.bitsandbytes"):
    logging.getLogger(_name).setLevel(logging.ERROR)

_HOMES = {
    "Policy": "vgpo_lite.models.policy",
    "chosen_device": "vgpo_lite.models.loading",
    "load_policy": "vgpo_lite.models.loading",
    "model_files": "vgpo_lite.models.hub",
    "processor_alone": "vgpo_lite.models.loading",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(importlib.import_module(_HOMES[name]))[name]
