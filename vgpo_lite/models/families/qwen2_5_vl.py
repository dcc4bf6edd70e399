"""Qwen2.5-VL: window attention inside the tower, which puts its features back in order itself."""

from vgpo_lite.models.families.qwen import QwenFamily

QWEN2_5_VL = QwenFamily(
    model_type="qwen2_5_vl",
    vision_projections=r"attn\.(qkv|proj)|mlp\.(gate|up|down)_proj",
    has_deepstack=False,
)
