"""The ways out: an adapter and its base become one folder that plain transformers loads; either goes to the hub."""

from vgpo_lite.export.card import MergeReport
from vgpo_lite.export.merging import merge
from vgpo_lite.export.pushing import Upload, push, upload_of

__all__ = ["MergeReport", "Upload", "merge", "push", "upload_of"]
