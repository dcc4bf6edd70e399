"""The one table of tolerances. All are absolute, for values of about 1; each says why it is not tighter."""

from __future__ import annotations

ORACLE = 1e-6
"""Against the reference numbers: promised. Those of the released program were computed in float32."""

FLOAT64 = 1e-12
"""The same mathematics in another order of operations, float64 (2.2e-16 per operation)."""

FLOAT32 = 1e-6
"""The same mathematics in another order of operations, float32 (6e-8 per operation)."""

EAGER_ATTENTION = 1e-6
"""Attention focus against a model's own eager attention weights, float32: promised."""

BFLOAT16 = 4e-3
"""One rounding to bfloat16 (8 bits of mantissa)."""
