"""The model card of a run: what was trained on what, how it was measured, and how to use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.data_types import Accuracy
    from vgpo_lite.listening import RunSummary
    from vgpo_lite.models import Policy

CITATION = "Visually-Guided Policy Optimization for Multimodal Reasoning, arXiv 2604.09349 (ACL 2026)"


def run_card(config: RunConfig, policy: Policy, summary: RunSummary, *, data: str, device: str) -> str:
    """README.md of a run directory, as markdown with the front matter the hub reads.

    Args:
        config: The run's settings.
        policy: What was trained.
        summary: How the run ended.
        data: Fingerprint of the rows that trained.
        device: Where it ran, in words.
    """
    commit = f" at commit `{policy.revision}`" if policy.revision else ""
    front = ["library_name: peft", "pipeline_tag: image-text-to-text", "tags:", "- vgpo-lite", "- lora"]
    if policy.revision:
        front.insert(0, f"base_model: {policy.model_id}")
    weights = {"vgpo": f"VGPO, {config.focus.signal} focus", "grpo": "GRPO (weights of one)"}[config.advantage]
    facts = {
        "base model": f"`{policy.model_id}`{commit}",
        "data set": f"`{config.data.id or config.dataset}`, split `{config.data.split}` (fingerprint `{data}`)",
        "method": f"{weights}; {config.loss} objective; group of {config.num_generations}",
        "adapter": f"LoRA r {config.lora.r}, alpha {config.lora.alpha}, over {config.quantization} weights",
        "steps": f"{summary.updated_steps} updates in {summary.steps} steps, learning rate {config.learning_rate:g}",
        "machine": f"{device}; peak memory {summary.peak_bytes / 1e9:.1f} GB; {summary.seconds / 60:.0f} minutes",
        "seed": str(config.seed),
        "held-out accuracy before": _accuracy(summary.before),
        "held-out accuracy after": _accuracy(summary.after),
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])
    base, imported = f'"{policy.model_id}"', ""
    if policy.model_id == "tiny":
        base, imported = "TINY_PATH", "\nfrom vgpo_lite.models.tiny import TINY_PATH\n"
    use = (
        "```bash\nvgpo-lite merge path/to/this/run --output merged\n```\n\n"
        "gives a folder for plain transformers; `adapter/` is a PEFT adapter:\n\n"
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForImageTextToText\n"
        f"{imported}\nbase = AutoModelForImageTextToText.from_pretrained({base})\n"
        'model = PeftModel.from_pretrained(base, "path/to/this/run/adapter")\n```'
    )
    parts = [
        "---\n" + "\n".join(front) + "\n---",
        f"# {config.model} trained on {config.dataset}",
        table,
        "`config.yaml` repeats the run. Accuracies are greedy, with 95 % Wilson intervals. The base model's licence "
        "applies.",
        "## Use",
        use,
        "## Citation",
        CITATION,
    ]
    return "\n\n".join(parts) + "\n"


def _accuracy(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "not measured"
    return f"{accuracy.share:.1%} of {accuracy.total} ({accuracy.low:.1%} to {accuracy.high:.1%})"
