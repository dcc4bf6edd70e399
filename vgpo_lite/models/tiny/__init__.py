"""The built-in model: a Qwen2-VL of 1.5 M parameters with its own tokenizer, made by `scripts/make_tiny_model.py`."""

from __future__ import annotations

from pathlib import Path

TINY_PATH = Path(__file__).parent
"""The folder that `from_pretrained` reads."""
