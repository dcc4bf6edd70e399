"""Where everything of a group sits in the row it shares.

One row holds the prompt once and the completions behind it, end to end, without padding. The prompt's last token
belongs to the completions: its state emits the first token of each, so it stands at the head of every one::

    row        [ p p I I I I p | p a a | p b b b b | p c ]      I: image tokens, p: other tokens of the prompt
    position     0 1 2 * * * 4   5 6 7   5 6 7 8 9   5 6        *: from the image's grid
    flat                         0 1 2   3 4 5 6 7   8 9        the order of completion tokens
    emits                        a a a   b b b b b   c c        each state emits the token behind it

So three tokens a, five tokens b and two tokens c are emitted: the last token of a completion emits nothing and is not
fed, unless its own state is wanted (`feeds_last`). Every completion goes on from the prompt's last position, whichever
its place in the row. What all share, the prompt without its last token, is the *shared* part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
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
        length: Fed tokens of each.
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
        prompt_length: Tokens of the prompt, >= 2.
        lengths: Tokens of each completion, all >= 1.
        feeds_last: Whether the last token of each completion is fed too.

    >>> layout = Layout(prompt_length=8, lengths=(3, 5, 2))
    >>> layout.token_count, layout.row_length
    (10, 17)
    >>> layout.places().tolist()
    [0, 1, 2, 0, 1, 2, 3, 4, 0, 1]
    """

    prompt_length: int
    lengths: tuple[int, ...]
    feeds_last: bool = False

    @classmethod
    def of(cls, group: RolloutGroup, rows: slice = slice(None), *, feeds_last: bool = False) -> Layout:
        """The layout of a group's completions, or of a slice of them."""
        lengths = group.completion_mask[rows].sum(dim=-1).tolist()
        return cls(group.prompt.input_ids.shape[0], tuple(lengths), feeds_last)

    @property
    def shared_length(self) -> int:
        """Tokens of the prompt that are run once."""
        return self.prompt_length - 1

    @property
    def fed_lengths(self) -> tuple[int, ...]:
        """Tokens run for each completion."""
        return tuple(length + self.feeds_last for length in self.lengths)

    @property
    def token_count(self) -> int:
        """Tokens run for all completions."""
        return sum(self.fed_lengths)

    @property
    def row_length(self) -> int:
        """Tokens of the whole row: about P + sum C, not G (P + C)."""
        return self.shared_length + self.token_count

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The completions as rectangles, in order; one where all have the same length.

        >>> Layout(prompt_length=8, lengths=(3, 3, 5)).blocks
        (Block(start=0, rows=2, length=3), Block(start=6, rows=1, length=5))
        """
        blocks: list[Block] = []
        start = 0
        for length, run in groupby(self.fed_lengths):
            blocks.append(Block(start, len(list(run)), length))
            start = blocks[-1].stop
        return tuple(blocks)

    def places(self) -> Int[Tensor, " flat"]:
        """The place of each flat token behind the prompt's last one, which is 0."""
        return torch.cat([torch.arange(length) for length in self.fed_lengths])

    def emitting(self) -> Int[Tensor, " emitted"]:
        """Flat places of the states that emitted the completions' tokens, in the tokens' order."""
        limits = torch.tensor(self.lengths).repeat_interleave(torch.tensor(self.fed_lengths))
        return (self.places() < limits).nonzero().squeeze(1)

    def own(self) -> Int[Tensor, " emitted"]:
        """Flat places of the completions' tokens themselves; all have one only where the last is fed.

        >>> Layout(prompt_length=8, lengths=(3, 1), feeds_last=True).own().tolist()
        [1, 2, 3, 5]
        """
        return (self.places() > 0).nonzero().squeeze(1)

    def mask(self, width: int | None = None) -> Bool[Tensor, "group token"]:
        """True on the completions' tokens, right-padded to `width`, or to the longest completion."""
        return torch.arange(width or max(self.lengths))[None] < torch.tensor(self.lengths)[:, None]

    def padded(
        self, values: Shaped[Tensor, "emitted ..."], width: int | None = None
    ) -> Shaped[Tensor, "group token ..."]:
        """One value per emitted token as one row per completion, zeros under the padding; gradients pass.

        >>> Layout(prompt_length=8, lengths=(3, 1)).padded(torch.tensor([1, 2, 3, 4])).tolist()
        [[1, 2, 3], [4, 0, 0]]
        """
        mask = self.mask(width)
        places = mask.flatten().nonzero().squeeze(1).to(values.device)
        empty = values.new_zeros(mask.numel(), *values.shape[1:])
        return empty.index_copy(0, places, values).unflatten(0, mask.shape)


def fed_ids(group: RolloutGroup, rows: slice = slice(None), *, feeds_last: bool = False) -> Int[Tensor, " flat"]:
    """The ids of a layout's flat tokens: the prompt's last, then the completion's, for each completion."""
    mask, ids = group.completion_mask[rows], group.completion_ids[rows]
    heads = group.prompt.input_ids[-1:].to(ids).expand(ids.shape[0], 1)
    all_fed = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
    if not feeds_last:
        all_fed = torch.cat([mask, torch.zeros_like(mask[:, :1])], dim=1)
    return torch.cat([heads, ids], dim=1)[all_fed]
