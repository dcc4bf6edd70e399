"""The row: what is where, for any lengths."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.small_models import make_group, make_prompt
from vgpo_lite.engine.layout import Layout

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=7).map(tuple)


@given(lengths=LENGTHS, prompt=st.integers(1, 9))
def test_every_token_is_emitted_by_the_state_before_it(lengths, prompt):
    layout = Layout(prompt_length=prompt, lengths=lengths)
    states = ["prompt"] + [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    emitting = [states[index] for index in layout.emitting_states().tolist()]
    wanted = [
        "prompt" if place == 0 else (row, place - 1) for row, length in enumerate(lengths) for place in range(length)
    ]
    assert emitting == wanted
    assert layout.row_length == prompt + len(states) - 1


@given(lengths=LENGTHS)
def test_blocks_cover_every_token_once_in_rectangles(lengths):
    layout = Layout(prompt_length=1, lengths=lengths)
    assert [length for block in layout.blocks for length in [block.length] * block.rows] == list(lengths)
    assert [block.start for block in layout.blocks[1:]] == [block.stop for block in layout.blocks[:-1]]
    assert layout.blocks[-1].stop == layout.token_count


@given(lengths=LENGTHS, extra=st.integers(0, 3))
def test_padding_keeps_values_and_gradients_in_their_places(lengths, extra):
    layout, width = Layout(prompt_length=1, lengths=lengths), max(lengths) + extra
    flat = torch.arange(1.0, layout.token_count + 1, requires_grad=True)
    rows = layout.padded(flat, width)
    assert torch.equal(rows != 0, layout.mask(width))
    assert torch.equal(rows[layout.mask(width)], flat)
    (gradient,) = torch.autograd.grad(rows, flat, torch.where(layout.mask(width), rows, torch.nan).detach())
    assert torch.equal(gradient, flat)


def test_a_group_may_be_wider_than_its_longest_completion():
    group = make_group(make_prompt([(2, 2)]), (2, 5, 3))
    assert Layout.of(group, slice(0, 1)).lengths == (2,)
    assert Layout.of(group, slice(0, 1)).padded(torch.ones(2), 5).tolist() == [[1, 1, 0, 0, 0]]
