"""What makes a run the same run: nothing of it may change where a checkpoint is continued."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vgpo_lite.errors import CheckpointError, DataError
from vgpo_lite.models.hub import local_fingerprint
from vgpo_lite.processes import Told, team

if TYPE_CHECKING:
    from collections.abc import Mapping

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


def refuse_other_views(bench: Workbench) -> None:
    """See that all processes of a run have the same before them.

    Raises:
        DataError: Another process than the first sees another model, other data or other settings.
    """
    first, *others = [told.facts for told in team().gathered(lambda: Told(facts=identity(bench)))]
    for rank, view in enumerate(others, start=1):
        if changed := _differences(first, view, "{} is {!r} there and {!r} here"):
            raise DataError(
                f"process {rank} (here) and the first (there) differ: {'; '.join(changed)}. Give every machine the "
                "same files and settings."
            )


def refuse_changes(kept: dict[str, object], now: dict[str, object], what: str) -> None:
    """Raise a CheckpointError that names what changed since the checkpoint was written."""
    changed = _differences(kept, now)
    if changed:
        raise CheckpointError(
            f"this run cannot continue with other {what}: {'; '.join(changed)}. Restore what it was, or start afresh "
            "with another --output."
        )


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], words: str = "{} was {!r} and is now {!r}"
) -> list[str]:
    left, right = _flat(before), _flat(now)
    names = sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
    return [words.format(name, left.get(name), right.get(name)) for name in names]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    leaves: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves
