"""The row: what is where, for any lengths."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.small_models import make_group, make_prompt
from vgpo_lite.engine.layout import Layout, fed_ids

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=7).map(tuple)


@given(lengths=LENGTHS, prompt=st.integers(2, 9), feeds_last=st.booleans())
def test_every_token_is_emitted_by_the_state_before_it(lengths, prompt, feeds_last):
    layout = Layout(prompt, lengths, feeds_last)
    fed = [(row, place) for row, length in enumerate(lengths) for place in range(length + feeds_last)]
    tokens = [(row, token) for row, length in enumerate(lengths) for token in range(length)]
    assert [fed[flat] for flat in layout.emitting().tolist()] == tokens
    assert layout.places().tolist() == [place for _, place in fed]
    assert layout.row_length == prompt - 1 + len(fed)
    if feeds_last:
        assert [fed[flat] for flat in layout.own().tolist()] == [(row, token + 1) for row, token in tokens]


@given(lengths=LENGTHS, feeds_last=st.booleans())
def test_what_is_fed_begins_with_the_prompts_last_token(lengths, feeds_last):
    group = make_group(make_prompt([(2, 2)]), lengths)
    rows = [ids[kept].tolist() for ids, kept in zip(group.completion_ids, group.completion_mask, strict=True)]
    head = group.prompt.input_ids[-1].item()
    wanted = [token for row in rows for token in [head, *(row if feeds_last else row[:-1])]]
    assert fed_ids(group, feeds_last=feeds_last).tolist() == wanted


@given(lengths=LENGTHS, feeds_last=st.booleans())
def test_blocks_cover_every_token_once_in_rectangles(lengths, feeds_last):
    layout = Layout(4, lengths, feeds_last)
    assert [length for block in layout.blocks for length in [block.length] * block.rows] == list(layout.fed_lengths)
    assert [block.start for block in layout.blocks[1:]] == [block.stop for block in layout.blocks[:-1]]
    assert layout.blocks[-1].stop == layout.token_count


@given(lengths=LENGTHS, extra=st.integers(0, 3))
def test_padding_keeps_values_and_gradients_in_their_places(lengths, extra):
    layout, width = Layout(prompt_length=1, lengths=lengths), max(lengths) + extra
    flat = torch.arange(1.0, sum(lengths) + 1, requires_grad=True)
    rows = layout.padded(flat, width)
    assert torch.equal(rows != 0, layout.mask(width))
    assert torch.equal(rows[layout.mask(width)], flat)
    (gradient,) = torch.autograd.grad(rows, flat, torch.where(layout.mask(width), rows, torch.nan).detach())
    assert torch.equal(gradient, flat)


def test_a_group_may_be_wider_than_its_longest_completion():
    group = make_group(make_prompt([(2, 2)]), (2, 5, 3))
    assert Layout.of(group, slice(0, 1)).lengths == (2,)
    assert Layout.of(group, slice(0, 1)).padded(torch.ones(2), 5).tolist() == [[1, 1, 0, 0, 0]]
