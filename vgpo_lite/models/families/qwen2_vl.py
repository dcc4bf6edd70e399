"""Qwen2-VL: a tower with full attention, features at the input only."""

from vgpo_lite.models.families.qwen import QwenFamily

QWEN2_VL = QwenFamily(
    model_type="qwen2_vl",
    vision_projections=r"attn\.(qkv|proj)|mlp\.(fc1|fc2)",
    has_deepstack=False,
)
