"""An engine that runs out of memory and goes on: what fails is done again in smaller parts, with the same result.

Around any `Engine`. Sizes that have shrunk stay for the rest of the run, also where a checkpoint is continued. What was
sampled before the failure is kept; noise depends on seed, place, row and token alone, so what is sampled again comes
out the same. An update that failed leaves no gradient behind: those of other groups are put back, and its own begins
anew in smaller parts.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from vgpo_lite.engine.backoff import (
    NO_GRAPH,
    Backoff,
    DecodeSizes,
    GradientSnapshot,
    Shortage,
    attempted,
    release_memory,
    smaller_parts,
)
from vgpo_lite.engine.completions import joined
from vgpo_lite.engine.rollout import DecodeProgress
from vgpo_lite.errors import HardwareError
from vgpo_lite.models.decode_copy import DecodeCopy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from vgpo_lite.algorithm.objective import Objective
    from vgpo_lite.data_types import Prompt, RolloutGroup, Sampling
    from vgpo_lite.engine.backoff import Phase
    from vgpo_lite.engine.protocol import Engine, EngineSettings, Look
    from vgpo_lite.models.policy import Policy

SETTING_NAMES = {
    "decode_weights": "decode_weights",
    "rows_per_micro_batch": "memory.rows_per_micro_batch",
    "prompts_per_decode": "memory.prompts_per_decode",
    "rows_per_decode": "memory.rows_per_decode",
    "logprob_chunk": "memory.logprob_chunk",
    "focus_chunk": "memory.focus_chunk",
    "recompute": "gradient_checkpointing",
    "decode_graph": "memory.decode_graph",
}
"""What the user calls each size of an engine."""

_DECODED = ("prompts_per_decode", "rows_per_decode")


class PatientEngine:
    """An `Engine` that backs off; see `protocol.Engine`."""

    def __init__(
        self,
        policy: Policy,
        settings: EngineSettings,
        *,
        build: Callable[[EngineSettings], Engine],
        advice: Callable[[], str] = str,
        written: Mapping[str, str] | None = None,
        on_backoff: Callable[[Backoff], None] | None = None,
    ) -> None:
        """Begin with the sizes of `settings`.

        Args:
            policy: The one that the engines work with.
            settings: Of the first engine.
            build: Makes an engine with other settings around the same policy.
            advice: Says what to do, in whole sentences, where the smallest sizes do not fit.
            written: Where the user wrote a setting, by its full name.
            on_backoff: Told of every size that shrinks.
        """
        self._policy = policy
        self._build = build
        self._engine = build(settings)
        self._first = settings
        self._advice = advice
        self._written = written or {}
        self._on_backoff = on_backoff
        # Evaluation decodes groups of one: a size that fits them says nothing about those that train.
        self._decode: dict[int, DecodeSizes] = {}
        self._graph: tuple[Look, Look] | None = None
        self._copy = DecodeCopy(policy) if settings.decode_weights == "copy" else None

    @property
    def settings(self) -> EngineSettings:
        """How it works by now."""
        return self._engine.settings

    def rows_at_once(self, group: RolloutGroup) -> int:
        """As the engine within."""
        return self._engine.rows_at_once(group)

    def sizes_in_use(self, group_size: int, prompts: int) -> dict[str, float]:
        """What decodes together of so many groups, tokens per chunk, and whether activations are recomputed, by what
        the user calls each.
        """
        decode, now = self._decode_sizes(group_size, prompts), self.settings
        sizes = {
            "prompts_per_decode": min(decode.prompts, prompts),
            "rows_per_decode": decode.rows,
            "logprob_chunk": now.logprob_chunk,
            "focus_chunk": now.focus_chunk,
            "recompute": now.recompute,
        }
        return {SETTING_NAMES[name]: float(size) for name, size in sizes.items()}

    def shrunk_sizes(self) -> dict[str, Any]:
        """What a checkpoint keeps of sizes that have shrunk, ready for JSON; empty while none has."""
        first, now = asdict(self._first), asdict(self.settings)
        parts = {name: now[name] for name in SETTING_NAMES if now[name] != first[name]}
        if not parts and not self._decode:
            return {}
        decode = {str(size): list(sizes) for size, sizes in self._decode.items()}
        return {"first": {name: first[name] for name in SETTING_NAMES}, "parts": parts, "decode": decode}

    def restore_sizes(self, kept: Mapping[str, Any]) -> tuple[str, ...]:
        """Go on with sizes that `shrunk_sizes` told, but for settings that have been changed since: those count anew.

        Returns:
            Each size that stays small, in words.
        """
        if not kept:
            return ()
        first = asdict(self._first)
        same = {name for name, size in kept["first"].items() if size == first[name]}
        parts = {name: size for name, size in kept["parts"].items() if name in same}
        decode = {int(size): DecodeSizes(*sizes) for size, sizes in kept["decode"].items() if same.issuperset(_DECODED)}
        if parts:
            self._engine = self._build(replace(self._first, **parts))
        if self.settings.decode_weights != "copy":
            self._copy = None
        self._decode = decode
        return (
            *(f"{SETTING_NAMES[name]} is {size}" for name, size in parts.items()),
            *(f"groups of {size} decode {sizes.prompts} x {sizes.rows} at a time" for size, sizes in decode.items()),
        )

    def sample(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        places: Sequence[int],
        on_step: Callable[[DecodeProgress], None] | None = None,
    ) -> list[RolloutGroup]:
        """Part after part, each as large as has fitted so far."""
        groups: list[RolloutGroup] = []
        pieces: list[RolloutGroup] = []  # of the group at hand, where it decodes in parts
        size, first = sampling.num_generations, 0
        while len(groups) < len(prompts):
            sizes = self._decode_sizes(size, len(prompts))
            part = slice(len(groups), len(groups) + (1 if first else sizes.prompts))
            rows = range(first, min(first + sizes.rows, size))
            done = (len(groups) * size + first) * sampling.max_completion_length
            limit = len(prompts) * size * sampling.max_completion_length
            decoded = attempted(
                self._sample,
                prompts[part],
                sampling if len(rows) == size else replace(sampling, rows=rows),
                places=places[part],
                on_step=None if on_step is None else _shifted(on_step, done, limit),
            )
            if isinstance(decoded, Shortage):
                self._decode_less(decoded, size, DecodeSizes(len(prompts[part]), len(rows)))
            elif len(rows) == size:
                groups += decoded
            else:
                pieces += decoded
                first = rows.stop
                if first == size:
                    groups.append(joined(pieces, pad_id=self._policy.pad_id))
                    pieces, first = [], 0
        return groups

    def look(self, group: RolloutGroup, *, keep_graph: bool, reference: bool) -> Look:
        """As the engine within. A graph stays in here, where it can be let go of when its update fails."""
        self._graph = None
        while isinstance(
            seen := attempted(self._engine.look, group, keep_graph=keep_graph, reference=reference), Shortage
        ):
            self._take_less("looking", group, seen)
        if seen.logprobs is None:
            return seen
        look = replace(seen, logprobs=None)
        self._graph = (look, seen)
        return look

    def update(
        self, look: Look, advantages: Float[Tensor, "group token"], objective: Objective, denominator: float
    ) -> dict[str, tuple[float, float]]:
        """As the engine within; from the second attempt on without the graph of the look, which was too large."""
        given = self._graph[1] if self._graph is not None and self._graph[0] is look else look
        self._graph = None
        before = GradientSnapshot(self._policy)
        while isinstance(
            metrics := attempted(self._engine.update, given, advantages, objective, denominator), Shortage
        ):
            given = look
            before.restore()
            self._take_less("updating", look.group, metrics)
        return metrics

    def forget(self) -> None:
        """Let go of what is kept per prompt, and of a graph that no update used."""
        self._graph = None
        self._engine.forget()

    def _sample(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        places: Sequence[int],
        on_step: Callable[[DecodeProgress], None] | None,
    ) -> list[RolloutGroup]:
        with nullcontext() if self._copy is None else self._copy.in_place():
            return self._engine.sample(prompts, sampling, places=places, on_step=on_step)

    def _decode_sizes(self, group_size: int, prompts: int) -> DecodeSizes:
        wanted = self.settings
        found = self._decode.get(group_size)
        if found is None:
            rows = min(wanted.rows_per_decode or group_size, group_size)
            found = DecodeSizes(wanted.prompts_per_decode or prompts, rows)
        return found if found.rows == group_size else DecodeSizes(1, found.rows)

    def _decode_less(self, shortage: Shortage, group_size: int, failed: DecodeSizes) -> None:
        if shortage.cause == NO_GRAPH:
            self._engine = self._build(replace(self.settings, decode_graph=False))
            self._tell("decoding", shortage, {"decode_graph": (True, False)})
            return
        if self._gave_up_copy("decoding", shortage):
            return
        smaller = failed.smaller()
        if smaller is None:
            raise self._exhausted("decoding", shortage)
        self._decode[group_size] = smaller
        pairs = zip(_DECODED, failed, smaller, strict=True)
        self._tell("decoding", shortage, {name: (was, now) for name, was, now in pairs if was != now})

    def _take_less(self, phase: Phase, group: RolloutGroup, shortage: Shortage) -> None:
        if self._gave_up_copy(phase, shortage):
            return
        before, rows = self.settings, self.rows_at_once(group)
        after = smaller_parts(before, rows)
        if after is None:
            raise self._exhausted(phase, shortage)
        self._engine = self._build(after)  # what the old one kept of prompts goes with it
        old, new = asdict(before), asdict(after)
        sizes = {name: (old[name], new[name]) for name in old if old[name] != new[name]}
        if before.rows_per_micro_batch is None:
            sizes["rows_per_micro_batch"] = (rows if rows > 1 else "auto", after.rows_per_micro_batch)
        self._tell(phase, shortage, sizes)

    def _gave_up_copy(self, phase: Phase, shortage: Shortage) -> bool:
        """Let go of the copy that samples, where there is one: it is only there for its speed."""
        if self._copy is None or (phase != "decoding" and not self._copy.is_made):
            return False
        self._copy = None
        self._engine = self._build(replace(self.settings, decode_weights="quantized"))
        self._tell(phase, shortage, {"decode_weights": ("copy", "quantized")})
        return True

    def _tell(self, phase: Phase, shortage: Shortage, sizes: Mapping[str, tuple[object, object]]) -> None:
        release_memory(self._policy.device)
        if self._on_backoff is not None:
            named = {SETTING_NAMES[name]: change for name, change in sizes.items()}
            overruled = {name: self._written[name] for name in named if name in self._written}
            self._on_backoff(Backoff(phase=phase, sizes=named, overruled=overruled, **shortage._asdict()))

    def _exhausted(self, phase: Phase, shortage: Shortage) -> HardwareError:
        release_memory(self._policy.device)
        where = "the GPU" if self._policy.device.type == "cuda" else "the machine"
        return HardwareError(
            f"{where} is out of memory while {phase}, at the smallest sizes there are, one completion at a time "
            f"({shortage.reason}). {self._advice()}".rstrip()
        )


def _shifted(on_step: Callable[[DecodeProgress], None], done: int, limit: int) -> Callable[[DecodeProgress], None]:
    """The same listener for a part of the work, behind `done` tokens of `limit`."""

    def step(progress: DecodeProgress) -> None:
        on_step(replace(progress, done_tokens=done + progress.done_tokens, limit_tokens=limit))

    return step
