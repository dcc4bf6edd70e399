"""Which keys a token sees, where that is not simply all that stand before it: windows, and images seen whole.

A layer with a window w shows a token the last w tokens of its own sequence, itself included. Gemma 3's images see
themselves in both directions. A completion's sequence is its prompt and itself, whatever its place in the row that a
group shares, so a window moves over the shared prompt as the completion goes on::

    window 5    prompt      completion a
    a's 1st     . p p p p | a
    a's 2nd     . . p p p | a a
    a's 6th     . . . . . | . a a a a a

Every mask here is None where it would hide nothing: then no memory is spent on it, and any kernel will do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

    from vgpo_lite.engine.layout import Layout


def prompt_sight(
    length: int,
    *,
    window: int | None,
    image_blocks: Int[Tensor, " prompt"] | None,
    device: torch.device | None = None,
) -> Bool[Tensor, "prompt prompt"] | None:
    """What each token of a prompt sees of it; None: itself and all that stands before it.

    Args:
        length: Tokens of the prompt.
        window: Of the layer; None: it has none.
        image_blocks: The image each token belongs to, from 0; -1 where it belongs to none. Tokens of one image see each
            other, inside the window. None: no image does that.
        device: Where the mask will be used; None: on the CPU.

    >>> prompt_sight(4, window=2, image_blocks=torch.tensor([-1, 0, 0, -1])).int().tolist()
    [[1, 0, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    """
    if window is None or window >= length:
        window = None  # nothing is that far back
        if image_blocks is None:
            return None
    place = torch.arange(length, device=device)
    sight = place[:, None] >= place
    if image_blocks is not None:
        blocks = image_blocks.to(place.device)
        sight |= (blocks[:, None] == blocks) & (blocks >= 0)
    if window is not None:
        sight &= place > place[:, None] - window
    return sight


class CompletionSight(NamedTuple):
    """What tokens of completions see.

    Attributes:
        prompt: Of the shared part of the prompt; None: everything.
        own: Of the longest completion, itself included, and so of every shorter one; None: all that is before them.
    """

    prompt: Bool[Tensor, "flat shared"] | None
    own: Bool[Tensor, "token token"] | None


def completion_sight(
    layout: Layout, *, window: int | None, places: Int[Tensor, " shared"] | None = None, device: torch.device
) -> CompletionSight:
    """What each completion token sees of its prompt and of its own completion.

    Args:
        layout: Where the completions are.
        window: Of the layer; None: it has none.
        places: Where in the prompt the keys stand that are there; None: all are.
        device: Where the masks will be used.

    >>> from vgpo_lite.engine.layout import Layout
    >>> sight = completion_sight(Layout(4, (3,)), window=2, device=torch.device("cpu"))
    >>> sight.prompt.int().tolist(), sight.own.int().tolist()
    ([[0, 0, 1], [0, 0, 0], [0, 0, 0]], [[1, 0, 0], [1, 1, 0], [0, 1, 1]])
    """
    longest, shared = max(layout.fed_lengths), layout.shared_length
    if window is None or shared + longest <= window:
        return CompletionSight(None, None)
    keys = torch.arange(shared, device=device) if places is None else places.to(device)
    prompt = keys > layout.places().to(device)[:, None] + shared - window
    return CompletionSight(prompt, prompt_sight(longest, window=window, image_blocks=None, device=device))
