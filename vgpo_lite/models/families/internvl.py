"""InternVL 3 in the form that transformers reads (`-hf`): an InternViT tower, a pixel shuffle and a Qwen2 decoder."""

from vgpo_lite.models.families.tiled import TiledFamily

INTERNVL = TiledFamily(
    model_type="internvl",
    tower="vision_tower",
    blocks="encoder.layer",
    connectors=("multi_modal_projector",),
    vision_projections=r"attention\.(q_proj|k_proj|v_proj|projection_layer)|mlp\.(fc1|fc2)",
    vision_tokens=r"<img>|</img>|<IMG_CONTEXT>|<video>",
)
