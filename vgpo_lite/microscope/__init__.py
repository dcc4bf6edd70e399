"""What a model looks at while it answers, as one HTML file: `looking` asks the model, `page` writes it down."""

from vgpo_lite.microscope.looking import (
    Inspection,
    SeenCompletion,
    SeenPrompt,
    focus_layer,
    hidden_from,
    inspect_prompts,
)
from vgpo_lite.microscope.page import inspection_page

__all__ = [
    "Inspection",
    "SeenCompletion",
    "SeenPrompt",
    "focus_layer",
    "hidden_from",
    "inspect_prompts",
    "inspection_page",
]
