"""What a merge wrote, as a report and as the model card of the folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
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


def model_card(report: MergeReport) -> str:
    """The merged folder's README.md: what was merged into what, and how well it agrees with the adapter."""
    commit = f" at commit `{report.revision}`" if report.revision else ""
    front = f"base_model: {report.model_id}\n" if report.revision else ""
    into = {
        "dequantized": "the weights the adapter was trained on",
        "original": "the original weights, which the adapter was not trained on",
    }[report.base]
    lines = [
        f"---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n{front}tags:\n- vgpo-lite\n---",
        f"# {Path(report.output).name}",
        f"An adapter trained with vgpo-lite, merged into {into}: `{report.model_id}`{commit}. The base model's licence "
        "applies.",
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
    lines.append(
        "```python\nfrom transformers import pipeline\n\n"
        'pipe = pipeline("image-text-to-text", model="path/to/this/folder")\n```'
    )
    return "\n\n".join(lines) + "\n"
