"""The order in which prompts are drawn: a fresh permutation of the rows for every pass, from the seed alone."""

from __future__ import annotations

import numpy as np


class PromptOrder:
    """Which row the n-th draw of a run takes.

    It has no state that a checkpoint would need: the row is a function of the seed, the number of rows and the draw.

    >>> order = PromptOrder(seed=0, rows=3)
    >>> sorted(order.row(draw) for draw in range(3)), sorted(order.row(draw) for draw in range(3, 6))
    ([0, 1, 2], [0, 1, 2])
    """

    def __init__(self, *, seed: int, rows: int) -> None:
        if rows < 1:
            raise ValueError(f"an order needs at least one row, got {rows}")
        self._seed = seed
        self._rows = rows
        self._epoch = -1
        self._permutation = np.arange(rows)

    def row(self, draw: int) -> int:
        """Row of draw `draw`, from 0."""
        epoch, place = divmod(draw, self._rows)
        if epoch != self._epoch:
            self._permutation = np.random.default_rng([self._seed, epoch]).permutation(self._rows)
            self._epoch = epoch
        return int(self._permutation[place])
