"""Qwen3-VL: features of several tower layers are added to the first layers of the language model (DeepStack)."""

from vgpo_lite.models.families.qwen import QwenFamily

QWEN3_VL = QwenFamily(
    model_type="qwen3_vl",
    vision_projections=r"attn\.(qkv|proj)|mlp\.linear_fc(1|2)",
    has_deepstack=True,
)
