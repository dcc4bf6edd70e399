"""The frozen carriers a row travels in: Sample -> Prompt -> RolloutGroup -> GroupRewards, GroupSignals -> StepReport.

The unit is the group until advantages are final. A carrier exists once all its fields are known; a None says that the
thing does not exist for this row, never that it is still to come. All tensors of carriers live on the CPU except those
of `Prompt.vision` after a policy has moved them; masks are bool, True = keep.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Bool, Float, Int
    from PIL import Image
    from torch import Tensor


IMAGE_MARK = "<image>"
"""Stands in a question where an image belongs."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One row of a data set, checked and decoded.

    Attributes:
        sample_id: Stable name of the row inside its data set, such as `geo3k/train/12`.
        question: The text of the question. `<image>` stands where an image belongs; there are exactly as many
            marks as images.
        images: Upright RGB images, in the order of their marks.
        answer: The gold answer, or None where the row has none (a user's reward may not need it).
        columns: The other columns of the row, as user reward functions receive them.
    """

    sample_id: str
    question: str
    images: tuple[Image.Image, ...]
    answer: str | None
    columns: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What is known of a row without decoding its images; enough to count its prompt's tokens and to check its gold.

    Attributes:
        sample_id: The same as the sample's.
        question: The same as the sample's, `<image>` marks included.
        image_sizes: Height and width of each image in pixels, as stored: a rotation noted beside the pixels may swap
            the two.
        answer: The gold answer, or None where the row has none.
    """

    sample_id: str
    question: str
    image_sizes: tuple[tuple[int, int], ...]
    answer: str | None


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A sample encoded for one model, once, without padding.

    Attributes:
        sample: The sample it was made from.
        text: The rendered conversation, before image tokens are expanded.
        input_ids: Token ids with every image token in place, int64.
        image_mask: True at the image tokens: where focus looks. All False for a prompt without an image.
        vision: What the processor made of the images, by the processor's own names (`pixel_values`
            [patch, dim], `image_grid_thw` [image, 3]); empty without an image.
        image_lengths: Image tokens of each image, in order; empty where nobody counted them.
    """

    sample: Sample
    text: str
    input_ids: Int[Tensor, " prompt"]
    image_mask: Bool[Tensor, " prompt"]
    vision: Mapping[str, Tensor] = field(default_factory=dict)
    image_lengths: tuple[int, ...] = ()

    @property
    def has_image(self) -> bool:
        """Whether the prompt shows at least one image."""
        return bool(self.vision)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are drawn. The names are TRL's.

    Attributes:
        num_generations: Completions per prompt, >= 1 (a group that trains has >= 2).
        max_completion_length: Tokens after which a completion is cut, >= 1.
        temperature: Logits are divided by it, > 0; 0 means greedy decoding.
        top_p: Nucleus mass in (0, 1]; 1 keeps every token.
        top_k: Most likely tokens kept, >= 0; 0 keeps every token.
        seed: Names the private noise of this draw: a completion depends on `(seed, prompt's place, row, token)`
            alone, never on which rows were decoded beside it.
        rows: Which of the group's completions are drawn, by their numbers; None: all of them.
        ignore_eos: Whether ids that end a completion are sampled like any other, so that every one is cut at the limit.
    """

    num_generations: int
    max_completion_length: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    rows: range | None = None
    ignore_eos: bool = False

    @property
    def drawn_rows(self) -> range:
        """The numbers of the completions that are drawn."""
        return range(self.num_generations) if self.rows is None else self.rows


@dataclass(frozen=True, kw_only=True)
class RolloutGroup:
    """The completions sampled from one prompt, right-padded to the longest.

    Attributes:
        prompt: The prompt they share.
        completion_ids: Sampled token ids, the end-of-sequence token included; arbitrary under the padding.
        completion_mask: True on sampled tokens; built from lengths.
        sampling_logprobs: log p of each sampled token under `softmax(logits / temperature)` over the whole
            vocabulary, as seen while sampling, float32; 0 under the padding.
        decode_focus: Focus of each token as seen while decoding, in [0, 1]; None where the rollout was not asked to
            look or the prompt has no image.
        finished: True where the completion ended by itself, False where it was cut at the limit.
        texts: The completions decoded, special tokens removed.
    """

    prompt: Prompt
    completion_ids: Int[Tensor, "group token"]
    completion_mask: Bool[Tensor, "group token"]
    sampling_logprobs: Float[Tensor, "group token"]
    decode_focus: Float[Tensor, "group token"] | None
    finished: Bool[Tensor, " group"]
    texts: tuple[str, ...]

    @property
    def token_count(self) -> int:
        """Sampled tokens of the whole group."""
        return int(self.completion_mask.sum())


@dataclass(frozen=True, kw_only=True)
class GroupRewards:
    """What the text of each completion earned.

    Attributes:
        rewards: The weighted sum that trains, float32.
        components: Each reward function's own values by name; nan where a function abstained.
    """

    rewards: Float[Tensor, " group"]
    components: Mapping[str, Float[Tensor, " group"]]


@dataclass(frozen=True, kw_only=True)
class GroupSignals:
    """What the no-gradient look at a group yields.

    Attributes:
        focus: How much each token looks at the image, in [0, 1]; None where the prompt has no image.
        old_logprobs: Log-probabilities before the first update on this rollout, float32; None where there is one
            update per rollout, so that the update's own log-probabilities are the old ones.
        ref_logprobs: Log-probabilities with the adapter switched off; None where the KL coefficient is 0.
    """

    focus: Float[Tensor, "group token"] | None
    old_logprobs: Float[Tensor, "group token"] | None
    ref_logprobs: Float[Tensor, "group token"] | None


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one optimizer step did, as it is written to metrics.jsonl.

    Attributes:
        step: The optimizer step, from 1.
        metrics: Values by `section/name`, units in the name.
    """

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A measured share of right answers.

    Attributes:
        right: Answers graded right.
        total: Answers asked for, >= 1.
        low: Lower end of the 95 % Wilson interval, in [0, 1].
        high: Upper end of it.
    """

    right: int
    total: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """Right answers over all, in [0, 1]."""
        return self.right / self.total
