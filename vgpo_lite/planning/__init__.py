"""What a run will hold in memory, before it starts: plain arithmetic on a model's config.json, the settings and the
data's largest prompt. Loads no torch, no weights and no GPU.

Reading order: `architecture` (the numbers of a model, `towers` those of its tower), `weights` (what is held all the
time), `job` (what the rest depends on), `layer` (a decoder layer, token by token), `phases` (the worst moment of each
phase), `prediction` (the whole, with its reserve), `choice` (what is `auto`, chosen to fit).
`update` cuts an update into parts; the engine asks it too.
"""

from vgpo_lite.planning.architecture import (
    BEYOND_FLOAT16,
    Architecture,
    architecture_of,
    beyond_float16,
    preset_architectures,
    read_json,
)
from vgpo_lite.planning.choice import CHOSEN, fitted, ways_out, would_fit
from vgpo_lite.planning.images import (
    TILED_TOKENS,
    cropped_tiles,
    most_tiles,
    resized,
    split_tiles,
    tiles_per_side,
)
from vgpo_lite.planning.job import Job, PromptSize
from vgpo_lite.planning.prediction import CONTEXT_BYTES, memory_plan, wanted_limit

__all__ = [
    "BEYOND_FLOAT16",
    "CHOSEN",
    "CONTEXT_BYTES",
    "TILED_TOKENS",
    "Architecture",
    "Job",
    "PromptSize",
    "architecture_of",
    "beyond_float16",
    "cropped_tiles",
    "fitted",
    "memory_plan",
    "most_tiles",
    "preset_architectures",
    "read_json",
    "resized",
    "split_tiles",
    "tiles_per_side",
    "wanted_limit",
    "ways_out",
    "would_fit",
]
