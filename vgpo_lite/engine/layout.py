"""Where everything of a group sits in the row it shares.

One row holds the prompt once and the completions behind it, end to end, without padding::

    row        [ p p p I I I p p | a a a | b b b b b | c c ]      I: image tokens
    position     0 1 2 * * * 5 6 | 7 8 9 | 7 8 9 . . | 7 8       * from the image's grid
    token                          0 1 2   3 4 5 6 7   8 9       the flat order of completion tokens
    state                      0 | 1 2 3 | 4 5 6 7 8 | 9 .       the hidden states that matter
    emits                        a b c a a  ...

A completion sees the prompt and itself; its positions go on from the prompt's last, whichever its place in the row. The
*states* are the prompt's last hidden state and those of all completion tokens: state 0 emitted the first token of every
completion, and the state of each completion token emitted the token behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Shaped
    from torch import Tensor

    from vgpo_lite.data_types import RolloutGroup


class Block(NamedTuple):
    """Neighbouring completions of one length: together they are a rectangle.

    Attributes:
        start: Flat place of the first token.
        rows: Completions.
        length: Tokens of each.
    """

    start: int
    rows: int
    length: int

    @property
    def stop(self) -> int:
        """Flat place behind the last token."""
        return self.start + self.rows * self.length


@dataclass(frozen=True)
class Layout:
    """The row of one group, or of some of its completions.

    Attributes:
        prompt_length: Tokens of the prompt.
        lengths: Tokens of each completion, all >= 1.

    >>> layout = Layout(prompt_length=8, lengths=(3, 5, 2))
    >>> layout.row_length, layout.token_count
    (18, 10)
    >>> layout.emitting_states().tolist()
    [0, 1, 2, 0, 4, 5, 6, 7, 0, 9]
    """

    prompt_length: int
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, group: RolloutGroup, rows: slice = slice(None)) -> Layout:
        """The layout of a group's completions, or of a slice of them."""
        lengths = group.completion_mask[rows].sum(dim=-1).tolist()
        return cls(prompt_length=group.prompt.input_ids.shape[0], lengths=tuple(lengths))

    @property
    def token_count(self) -> int:
        """Completion tokens."""
        return sum(self.lengths)

    @property
    def row_length(self) -> int:
        """Tokens of the whole row: P + sum C, not G (P + C)."""
        return self.prompt_length + self.token_count

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The completions as rectangles, in order; one where all have the same length.

        >>> Layout(prompt_length=8, lengths=(3, 3, 5)).blocks
        (Block(start=0, rows=2, length=3), Block(start=6, rows=1, length=5))
        """
        blocks: list[Block] = []
        start = 0
        for length, run in groupby(self.lengths):
            blocks.append(Block(start, len(list(run)), length))
            start = blocks[-1].stop
        return tuple(blocks)

    def token_places(self) -> Int[Tensor, " flat"]:
        """The place of each flat token inside its completion, from 0."""
        return torch.cat([torch.arange(length) for length in self.lengths])

    def emitting_states(self) -> Int[Tensor, " flat"]:
        """For each flat token, the state that emitted it: 0 for first tokens, otherwise the state before its own."""
        return torch.arange(self.token_count) * (self.token_places() > 0)

    def mask(self, width: int | None = None) -> Bool[Tensor, "group token"]:
        """True on tokens, right-padded to `width`, or to the longest completion."""
        return torch.arange(width or max(self.lengths))[None] < torch.tensor(self.lengths)[:, None]

    def padded(self, flat: Shaped[Tensor, "flat ..."], width: int | None = None) -> Shaped[Tensor, "group token ..."]:
        """Flat values as one row per completion, zeros under the padding; gradients pass.

        >>> Layout(prompt_length=8, lengths=(3, 1)).padded(torch.tensor([1, 2, 3, 4])).tolist()
        [[1, 2, 3], [4, 0, 0]]
        """
        width = width or max(self.lengths)
        starts = (0, *accumulate(self.lengths))
        rows = torch.arange(len(self.lengths)).repeat_interleave(torch.tensor(self.lengths))
        places = (rows * width + torch.arange(starts[-1]) - torch.tensor(starts)[rows]).to(flat.device)
        empty = flat.new_zeros(len(self.lengths) * width, *flat.shape[1:])
        return empty.index_copy(0, places, flat).unflatten(0, (len(self.lengths), width))
