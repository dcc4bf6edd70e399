"""SmolVLM and SmolVLM2: a SigLIP tower, a pixel shuffle and a Llama decoder; large images are split into tiles."""

from vgpo_lite.models.families.tiled import TiledFamily

SMOLVLM = TiledFamily(
    model_type="smolvlm",
    decoder="text_model",
    tower="vision_model",
    blocks="encoder.layers",
    connectors=("connector",),
    vision_projections=r"self_attn\.(q|k|v|out)_proj|mlp\.(fc1|fc2)",
    vision_tokens=r"<image>|<video>|<fake_token_around_image>|<global-img>|<row_\d+_col_\d+>",
)
