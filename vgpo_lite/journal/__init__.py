"""The flight recorder: what the last steps were taken on and what came of them, so that each can be taken anew.

index.jsonl                  one line per kept step: its file with size and sha256, its adapter, its loss
step-000012.safetensors      token ids, rewards, log-probabilities, focus, advantages, prompt ids, generator states
adapters/SHA256.safetensors  the adapter before a step, once for all steps that began with it

Step files are small and kept for `journal.steps` steps; adapters for as many recent steps as `journal.max_bytes` has
room for. The file of an adapter equals that of a checkpoint of the same weights, so a checkpoint can stand in for it.
"""

from vgpo_lite.journal.index import FOLDER, Entry, read_index
from vgpo_lite.journal.pages import Page, image_hash
from vgpo_lite.journal.reading import adapter_place, kept_steps, read_adapter, read_page
from vgpo_lite.journal.writing import Journal

__all__ = [
    "FOLDER",
    "Entry",
    "Journal",
    "Page",
    "adapter_place",
    "image_hash",
    "kept_steps",
    "read_adapter",
    "read_index",
    "read_page",
]
