from __future__ import annotations

import torch

from tests.algorithm.groups import assert_close
from tests.tolerances import FLOAT32, FLOAT64
from vgpo_lite.algorithm.masked import masked_mean, masked_sum, min_max_scale, zero_padding

NAN = float("nan")
VALUES = torch.tensor([[1.0, 4.0, NAN, NAN], [2.0, 2.0, 2.0, NAN], [NAN, NAN, NAN, NAN]], dtype=torch.float64)
MASK = torch.tensor([[True, True, False, False], [True, True, True, False], [False] * 4])


def test_sums_and_means_count_only_what_the_mask_keeps():
    # rows: 1 + 4 = 5 over two tokens; 2 + 2 + 2 = 6 over three; nothing
    assert masked_sum(VALUES, MASK).tolist() == [5.0, 6.0, 0.0]
    assert masked_mean(VALUES, MASK).tolist() == [2.5, 2.0, 0.0]


def test_min_max_scale_stretches_each_row_and_leaves_a_constant_one_at_zero():
    # (1 - 1) / (4 - 1) = 0 and (4 - 1) / (4 - 1) = 1, short by 1e-8 / 3; the constant row has range 0
    scaled = min_max_scale(VALUES, MASK)
    assert_close(scaled[0], torch.tensor([0.0, 3 / (3 + 1e-8), 0.0, 0.0], dtype=torch.float64), FLOAT64)
    assert scaled[1:].eq(0).all()


def test_no_gradient_reaches_the_padding():
    values = VALUES.clone().requires_grad_()
    (zero_padding(values, MASK).square().sum() + masked_mean(values, MASK).sum()).backward()
    # d/dv (v^2 + v / T) = 2 v + 1 / T
    expected = torch.tensor([[2.5, 8.5, 0, 0], [4 + 1 / 3, 4 + 1 / 3, 4 + 1 / 3, 0], [0, 0, 0, 0]]).double()
    assert_close(values.grad, expected, FLOAT32)


def test_the_dtype_is_kept():
    for dtype in (torch.float32, torch.float64):
        values = VALUES.to(dtype)
        results = (
            zero_padding(values, MASK),
            masked_sum(values, MASK),
            masked_mean(values, MASK),
            min_max_scale(values, MASK),
        )
        assert {result.dtype for result in results} == {dtype}
