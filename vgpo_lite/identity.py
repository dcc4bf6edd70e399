"""What makes a run the same run: nothing of it may change where a checkpoint is continued."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vgpo_lite.models.hub import local_fingerprint

if TYPE_CHECKING:
    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.preparation import Workbench

# Settings that decide no step's result; of the revision, the commit it leads to is compared.
_MAY_CHANGE = {
    "max_steps", "output", "checkpoint", "journal", "memory", "report_to", "save_completions_every", "eval", "revision"
}  # fmt: skip


def identity(bench: Workbench) -> dict[str, object]:
    """What must stay the same for a run to go on: the model, the data and every setting that decides the result."""
    return {
        "model's files": bench.policy.model_id,
        "model's commit": bench.policy.revision,
        "model's weights": None if bench.policy.revision else local_fingerprint(bench.policy.model_id),
        "data": bench.train.fingerprint,
        "rows": len(bench.train),
        "settings": deciding_settings(bench.config),
    }


def deciding_settings(config: RunConfig) -> dict[str, object]:
    """The settings that decide a step's result."""
    return config.model_dump(mode="json", exclude=_MAY_CHANGE)
