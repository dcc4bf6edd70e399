"""Merge: an adapter and its base become one folder that plain transformers loads, checked to say the same."""

from vgpo_lite.export.card import MergeReport
from vgpo_lite.export.merging import merge

__all__ = ["MergeReport", "merge"]
