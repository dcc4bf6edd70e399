"""The only room that knows transformers, peft, bitsandbytes and unsloth."""

from __future__ import annotations

import logging

# On a CPU bitsandbytes looks for a package of kernels, logs that it is not there, and carries on without. transformers
# logs in which format it dequantizes, which a merge decides and reports itself.
for _name in ("bitsandbytes.backends.cpu.ops", "transformers.integrations.bitsandbytes"):
    logging.getLogger(_name).setLevel(logging.ERROR)

from vgpo_lite.models.loading import load_policy, processor_alone  # noqa: E402
from vgpo_lite.models.policy import Policy  # noqa: E402

__all__ = ["Policy", "load_policy", "processor_alone"]
