"""What a run will hold in memory, before it starts: plain arithmetic on a model's config.json, the settings and the
data's largest prompt. Loads no torch, no weights and no GPU.

Reading order: `architecture` (the numbers of a model, `towers` those of its tower), `weights` (what is held all the
time), `job` (what the rest depends on), `layer` (a decoder layer, token by token), `phases` (the worst moment of each
phase), `prediction` (the whole, with its reserve), `choice` (what is `auto`, chosen to fit).
`update` cuts an update into parts; the engine asks it too.
"""

from vgpo_lite.planning.anyres import best_canvas, canvas_budget, canvas_fit, joined_map, joined_tokens
from vgpo_lite.planning.architecture import (
    Architecture,
    architecture_of,
    check_format,
    is_beyond,
    preset_architectures,
    read_json,
)
from vgpo_lite.planning.choice import CHOSEN, fitted, ways_out, would_fit
from vgpo_lite.planning.images import (
    cropped_tiles,
    cropped_tokens,
    most_tiles,
    pooled_tokens,
    resized,
    split_tiles,
    split_tokens,
    tiles_per_side,
)
from vgpo_lite.planning.job import Job, PromptSize
from vgpo_lite.planning.prediction import CONTEXT_BYTES, memory_plan, wanted_limit

TILED_TOKENS = {
    "smolvlm": split_tokens,
    "internvl": cropped_tokens,
    "llava_onevision": joined_tokens,
    "gemma3": pooled_tokens,
}
"""Image tokens of an image, for the families that cut images into tiles, by `model_type`."""

__all__ = [
    "CHOSEN",
    "CONTEXT_BYTES",
    "TILED_TOKENS",
    "Architecture",
    "Job",
    "PromptSize",
    "architecture_of",
    "best_canvas",
    "canvas_budget",
    "canvas_fit",
    "check_format",
    "cropped_tiles",
    "fitted",
    "is_beyond",
    "joined_map",
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
