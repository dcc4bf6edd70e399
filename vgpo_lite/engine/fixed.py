"""A step of decoding whose shapes and addresses stay the same from token to token, so that a GPU can be told once.

A forward of one token is hundreds of small kernels, and starting them takes a CPU longer than running them takes the
GPU. As a CUDA graph they start together. For that a step may read and write nothing but the same places: keys and
values in room that is there before it is needed, attended to as a whole, with what holds no token masked; the token's
place, ids and positions in tensors that are written anew before each step. Where room doubles or slots leave, all of
it moves, and the next step but one is captured again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vgpo_lite.engine.backoff import GraphError
from vgpo_lite.engine.decode import GroupCache
from vgpo_lite.errors import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    States = Float[Tensor, "row hidden"]
    Forward = Callable[[Int[Tensor, "prompt slot"], Int[Tensor, "prompt slot"]], States]
    Capture = Callable[[Callable[[], States]], Callable[[], States]]


class FixedCache(GroupCache):
    """A `GroupCache` that moves only where `moves` counts it: between forwards, never in one.

    `prepare` comes before each forward.

    Attributes:
        moves: How often keys and values have been put elsewhere.
    """

    def __init__(self, image_masks: Sequence[Bool[Tensor, " prompt_token"]], **sizes: Any) -> None:
        """As for `GroupCache`."""
        super().__init__(image_masks, **sizes)
        self.moves = 0
        self._place = torch.zeros(1, dtype=torch.long, device=self._image_mask.device)
        self._set_room(self._first_tokens())
        self._set_attention()

    def prepare(self) -> None:
        """See that there is room for the token to come, and say where it goes."""
        if self._own and self._own[0].shape[4] == self.tokens:
            for layer, held in enumerate(self._own):
                self._own[layer] = self._more_room(held)
            self._set_room(self._own[0].shape[4])
        self._place.fill_(self.tokens)
        torch.gt(self._places, self._place, out=self._unused)

    def keep(self, prompts: Int[Tensor, " kept"], slots: Int[Tensor, "kept slot"]) -> None:
        """As for `GroupCache`."""
        super().keep(prompts, slots)
        self.moves += 1
        self._set_attention()

    def _set_room(self, room: int) -> None:
        self.moves += 1
        self._places = torch.arange(room, device=self._place.device)
        self._unused = torch.ones_like(self._places, dtype=torch.bool)

    def _set_attention(self) -> None:
        self.attention = torch.zeros(self._prompts, self._slots, device=self._place.device)

    @property
    def _at(self) -> Int[Tensor, " 1"]:
        """As written by `prepare`: a captured step reads it anew each time."""
        return self._place

    def _see(self, attention: Float[Tensor, "prompt slot"]) -> None:
        self.attention.copy_(attention)

    def _append(self, layer: int, key: Tensor, value: Tensor) -> Float[Tensor, "2 prompt kv_head slot room dim"]:
        """Write the token at hand where `prepare` said; all of the layer's room with it."""
        if layer == len(self._own):
            self._own.append(self._first_room(key))
        for held, new in zip(self._own[layer], (key, value), strict=True):
            held.index_copy_(3, self._place, self._by_slot(new).unsqueeze(3))
        return self._own[layer]


class FixedStep:
    """A forward at fixed addresses: run once as it is where something has moved, then captured and replayed."""

    def __init__(self, forward: Forward, cache: FixedCache, capture: Capture | None) -> None:
        """Prepare for the first step.

        Args:
            forward: From ids and positions to the states that emit the next token; reads and writes `cache`.
            cache: Keys and values of what has been decoded.
            capture: Runs a function and returns what runs it again; None: every step is run as it is.
        """
        self._forward = forward
        self._cache = cache
        self._capture = capture
        self._moves = -1

    def __call__(self, ids: Int[Tensor, "prompt slot"], positions: Int[Tensor, "prompt slot"]) -> States:
        """The states of one token per slot; overwritten by the next step.

        Raises:
            GraphError: The step cannot be captured. What was decoded so far is lost.
        """
        self._cache.prepare()
        is_first = self._moves != self._cache.moves
        if is_first:
            self._moves = self._cache.moves
            self._replay: Callable[[], States] | None = None  # its memory, before another is captured
            self._ids, self._positions = ids.clone(), positions.clone()
        self._ids.copy_(ids)
        self._positions.copy_(positions)
        if is_first or self._capture is None:
            return self._run()
        if self._replay is None:
            self._replay = self._capture(self._run)
        return self._replay()

    def _run(self) -> States:
        return self._forward(self._ids, self._positions)


def captured_graph(run: Callable[[], States]) -> Callable[[], States]:
    """Capture what a function does on the GPU as a graph; capturing does none of it yet.

    Returns:
        Does it, and gives the function's result: the same tensor each time.

    Raises:
        GraphError: It does what a graph cannot hold, such as waiting for the GPU.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            states = run()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise GraphError(str(error).partition("\n")[0] or type(error).__name__) from error

    def replay() -> States:
        graph.replay()
        return states

    return replay
