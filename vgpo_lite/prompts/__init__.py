"""Sample -> Prompt: one encoding per prompt, with its images where their marks stand, and nothing ever cut. Where a
model's own chat template shows images first, images with no text between them stand there.

The user's turn is encoded as plain text: no spelling of a special token in it becomes one. So `<think>` in an
instruction is read letter by letter even by a tokenizer that has an untrained token of that name, and `<|image_pad|>`
in a question never becomes an image token.
"""

from vgpo_lite.prompts.encode import encode_prompt
from vgpo_lite.prompts.grids import Grid
from vgpo_lite.prompts.lengths import largest_prompt, longest_prompts, prompt_lengths, prompts_fit, prompts_in_order
from vgpo_lite.prompts.pieces import image_grids, images_scaled_down, prompt_image_tokens
from vgpo_lite.prompts.processor import Processor
from vgpo_lite.prompts.shown import shown_prompt
from vgpo_lite.prompts.wording import INSTRUCTIONS, user_text

__all__ = [
    "INSTRUCTIONS",
    "Grid",
    "Processor",
    "encode_prompt",
    "image_grids",
    "images_scaled_down",
    "largest_prompt",
    "longest_prompts",
    "prompt_image_tokens",
    "prompt_lengths",
    "prompts_fit",
    "prompts_in_order",
    "shown_prompt",
    "user_text",
]
