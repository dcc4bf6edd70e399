"""The model card: what was trained on what, how it was measured and at what cost, how to use it, whom to cite."""

from vgpo_lite.card.page import adapter_card, adapter_companions
from vgpo_lite.card.parts import citation, cost_and_recipe, front_matter, results, snippet
from vgpo_lite.card.record import RECORD, TrainingRecord, read_record, training_record

__all__ = [
    "RECORD",
    "TrainingRecord",
    "adapter_card",
    "adapter_companions",
    "citation",
    "cost_and_recipe",
    "front_matter",
    "read_record",
    "results",
    "snippet",
    "training_record",
]
