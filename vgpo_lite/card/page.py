"""The card of an adapter: in its own folder, and in the run directory that holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vgpo_lite.card.parts import citation, cost_and_recipe, front_matter, results, snippet
from vgpo_lite.card.record import RECORD, record_bytes

if TYPE_CHECKING:
    from vgpo_lite.card.record import TrainingRecord

_OVER_NF4 = (
    "The adapter was trained over NF4 weights; over the base model's own, as here, it answers much like that. "
    "`vgpo-lite merge` on this folder writes the model that was trained, for programs that know no adapters."
)
_OVER_PLAIN = "`vgpo-lite merge` on this folder writes one model for programs that know no adapters."


def adapter_card(record: TrainingRecord, *, source: str = ".") -> str:
    """README.md of an adapter, as markdown with the front matter the hub reads.

    Args:
        record: What is told of its training.
        source: Path of the adapter's folder from where the card lies, or its name on the hub.
    """
    parts = [
        front_matter(record, library="peft", base=record.model if record.revision else None),
        f"# {record.title}",
        f"A LoRA adapter for `{record.model}`, trained with vgpo-lite: reinforcement learning with rewards that a "
        "program can verify, on 4-bit vision-language models.",
        results(record),
        "## Use",
        snippet(record, kind="adapter", source=source),
        _OVER_NF4 if record.quantization == "nf4" else _OVER_PLAIN,
        cost_and_recipe(record),
        citation(),
    ]
    return "\n\n".join(parts) + "\n"


def adapter_companions(record: TrainingRecord) -> dict[str, bytes]:
    """What lies beside an adapter's weights: its card, and the record that later cards are written from."""
    return {"README.md": adapter_card(record).encode(), RECORD: record_bytes(record)}
