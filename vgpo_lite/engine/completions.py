"""What a rollout writes down while it decodes, and the groups it becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from vgpo_lite.data_types import RolloutGroup
from vgpo_lite.engine.sampling import completion_noise, sampled_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import Bool, Float, Int, Shaped
    from torch import Tensor

    from vgpo_lite.data_types import Prompt, Sampling
    from vgpo_lite.models.policy import Policy


class Completions:
    """The completions of several prompts, as long as they grow.

    Rows are prompt-major: those that are drawn of the first prompt, of the second, and so on. Everything lies on the
    model's device.

    Attributes:
        focus: What was seen of each token, to be filled in by who decodes.
    """

    def __init__(self, policy: Policy, prompts: Sequence[Prompt], places: Sequence[int], sampling: Sampling) -> None:
        """Prepare an empty record.

        Args:
            policy: Gives the ids that end a completion and those that are never sampled.
            prompts: What is completed.
            places: Each prompt's place in the run, which names its noise.
            sampling: How tokens are drawn.
        """
        rows, tokens, device = len(prompts) * len(sampling.drawn_rows), sampling.max_completion_length, policy.device
        self._policy = policy
        self._prompts = prompts
        self._sampling = sampling
        self._noise = torch.cat([completion_noise(sampling, place) for place in places]).to(device)
        end_ids = () if sampling.ignore_eos else policy.eos_ids
        self._end_ids = torch.tensor(sorted(end_ids), dtype=torch.long, device=device)
        self._suppressed_ids = torch.tensor(sorted(policy.suppressed_ids), dtype=torch.long, device=device)
        self._ids = torch.full((rows, tokens), policy.pad_id, device=device)
        self._logprobs = torch.zeros(rows, tokens, device=device)
        self._lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self._ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.focus = torch.zeros(rows, tokens, device=device)

    def draw(
        self,
        token: int,
        logits: Float[Tensor, "slot vocabulary"],
        rows: Int[Tensor, " slot"],
        alive: Bool[Tensor, " slot"],
    ) -> tuple[Int[Tensor, " slot"], Bool[Tensor, " slot"]]:
        """Sample the next token of each row, and write it down.

        Args:
            token: The token's place in its completion, from 0.
            logits: Of that token.
            rows: Which row each slot decodes; no row twice.
            alive: False where a slot's row has ended: it is given some token, which nobody will see.

        Returns:
            The tokens, and which slots' rows go on after them.
        """
        ids, logprobs = sampled_tokens(logits, self._noise[rows, token], self._suppressed_ids, self._sampling)
        ends = torch.isin(ids, self._end_ids)
        self._ids[rows, token] = ids
        self._logprobs[rows, token] = logprobs
        self._lengths[rows] += alive
        self._ended[rows] |= ends
        return ids, alive & ~ends

    def groups(self, *, with_focus: bool) -> list[RolloutGroup]:
        """The groups, in the order of their prompts, on the CPU.

        Args:
            with_focus: Whether `focus` was filled in.
        """
        size = len(self._sampling.drawn_rows)
        lengths = self._lengths.cpu()
        mask = torch.arange(self._ids.shape[1]) < lengths[:, None]
        # What a slot decoded beyond its row's end is overwritten: nothing depends on when rows were retired.
        ids = self._ids.cpu().where(mask, torch.tensor(self._policy.pad_id))
        logprobs = self._logprobs.cpu().where(mask, torch.tensor(0.0))
        focus = self.focus.cpu().where(mask, torch.tensor(0.0))
        ended = self._ended.cpu()
        groups = []
        for place, prompt in enumerate(self._prompts):
            own = slice(place * size, (place + 1) * size)
            longest = int(lengths[own].max())
            group_ids, group_mask = ids[own, :longest].clone(), mask[own, :longest].clone()
            groups.append(
                RolloutGroup(
                    prompt=prompt,
                    completion_ids=group_ids,
                    completion_mask=group_mask,
                    sampling_logprobs=logprobs[own, :longest].clone(),
                    decode_focus=focus[own, :longest].clone() if with_focus and prompt.has_image else None,
                    finished=ended[own].clone(),
                    texts=tuple(
                        self._policy.text_of(row[kept]) for row, kept in zip(group_ids, group_mask, strict=True)
                    ),
                )
            )
        return groups


def joined(pieces: Sequence[RolloutGroup], *, pad_id: int) -> RolloutGroup:
    """One group from completions of the same prompt that were decoded one part after the other.

    Args:
        pieces: The parts, in the order of their rows.
        pad_id: What stands where a completion has ended.
    """
    longest = max(piece.completion_ids.shape[1] for piece in pieces)

    def rows(parts: Iterable[Shaped[Tensor, "row token"]], filling: int = 0) -> Shaped[Tensor, "group token"]:
        return torch.cat([pad(part, (0, longest - part.shape[1]), value=filling) for part in parts])

    focus = [piece.decode_focus for piece in pieces if piece.decode_focus is not None]
    return RolloutGroup(
        prompt=pieces[0].prompt,
        completion_ids=rows((piece.completion_ids for piece in pieces), pad_id),
        completion_mask=rows(piece.completion_mask for piece in pieces),
        sampling_logprobs=rows(piece.sampling_logprobs for piece in pieces),
        decode_focus=rows(focus) if len(focus) == len(pieces) else None,
        finished=torch.cat([piece.finished for piece in pieces]),
        texts=tuple(text for piece in pieces for text in piece.texts),
    )
