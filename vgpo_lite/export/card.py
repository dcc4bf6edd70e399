"""What a merge wrote, as a report and as the model card of the folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vgpo_lite.card import citation, cost_and_recipe, front_matter, results, snippet
from vgpo_lite.config.writing import own_name

if TYPE_CHECKING:
    from vgpo_lite.card import TrainingRecord
    from vgpo_lite.models.agreement import Agreement

Base = Literal["dequantized", "original"]


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What a merge wrote.

    Attributes:
        output: The folder.
        model_id: The base model.
        revision: Its commit on the hub; None where it comes from no hub.
        base: What the adapter was added to: `dequantized` (what it was trained on) or `original`.
        dtype: The format the weights are stored in.
        layers: Layers that changed.
        rounding_error: What rounding to `dtype` did to the update: norm of the error over norm of the update.
        agreement: How the merged model compares with the adapter; None where it was not verified.
        notes: What the user should know, such as a narrower format that was given up.
    """

    output: str
    model_id: str
    revision: str | None
    base: Base
    dtype: str
    layers: int
    rounding_error: float
    agreement: Agreement | None
    notes: tuple[str, ...] = ()


def model_card(report: MergeReport, record: TrainingRecord | None) -> str:
    """The merged folder's README.md.

    Args:
        report: What was merged into what, and how well it agrees with the adapter.
        record: What the adapter's folder tells of its training; None for an adapter that was trained elsewhere.
    """
    commit = f" at commit `{report.revision}`" if report.revision else ""
    name = report.model_id if report.revision else own_name(report.model_id)
    into = {
        "dequantized": "the weights the adapter was trained on",
        "original": "the original weights, which the adapter was not trained on",
    }[report.base]
    lines = [
        front_matter(record, library="transformers", base=report.model_id if report.revision else None),
        f"# {Path(report.output).name if record is None else record.title}",
        f"A whole model: a LoRA adapter merged with vgpo-lite into {into}, `{name}`{commit}. The base model's licence "
        "applies.",
        *([] if record is None else [results(record)]),
        "## Use",
        snippet(record, kind="merged", source="."),
        "## Merge",
        f"- layers changed: {report.layers}\n- stored as: {report.dtype}\n- error of rounding: "
        f"{report.rounding_error:.2%} of the update",
    ]
    if report.agreement is None:
        lines.append("The merged model was not compared with the adapter.")
    else:
        lines.append(
            f"Compared over {report.agreement.positions} positions of built-in prompts, with and without an image:\n\n"
            "| | |\n|---|---|\n"
            f"| largest logit gap, merged and adapter | {report.agreement.merged_gap:.3g} |\n"
            f"| largest logit gap, adapter and base | {report.agreement.adapter_gap:.3g} |\n"
            f"| same most likely token, merged and adapter | {report.agreement.greedy:.1%} |"
        )
    lines += list(report.notes)
    lines += [] if record is None else [cost_and_recipe(record)]
    lines.append(citation())
    return "\n\n".join(lines) + "\n"
