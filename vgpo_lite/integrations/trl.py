"""VGPO's weights for TRL's GRPOTrainer: its engine, vLLM, DeepSpeed and FSDP, with our focus (extra `trl`).

    from vgpo_lite.integrations.trl import VGPOTrainer

    trainer = VGPOTrainer(model, reward_funcs=..., args=GRPOConfig(...), train_dataset=...)

After TRL has sampled and graded, one forward without a graph shows the focus on the image, and every completion's
advantage becomes one per token. All else is TRL's. On one card, `vgpo_lite.train` does the same in a fraction of the
time: here image and prompt are copied for every completion, and focus costs a pass of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

try:
    from trl import GRPOTrainer
    from trl.models.utils import disable_gradient_checkpointing
except ImportError as error:
    raise ImportError('vgpo_lite.integrations.trl needs TRL: pip install "vgpo-lite[trl]"') from error

from vgpo_lite.algorithm.focus import attention_focus, similarity_focus
from vgpo_lite.algorithm.weigh import Weighting, weigh
from vgpo_lite.engine.capture import AttentionCapture
from vgpo_lite.models.attention import use_shared_attention
from vgpo_lite.models.families import family_of

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor, nn

    from vgpo_lite.models.families import Family

FOCUS_CHUNK = 256
"""Tokens whose attention in the focus layer exists at one time."""

_FORWARD_ARGUMENTS = (
    "pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids", "token_type_ids", "pixel_attention_mask",
    "image_sizes", "num_tiles", "spatial_shapes", "image_position_ids",
)  # fmt: skip


class VGPOTrainer(GRPOTrainer):
    """GRPOTrainer whose advantages are re-weighted by how much tokens and completions look at the image.

    Attributes:
        weighting: How focus becomes weights.
        focus_signal: What focus is, as in `engine.protocol`.
    """

    def __init__(
        self,
        *arguments: Any,
        weighting: Weighting | None = None,
        focus_signal: Literal["attention", "similarity"] = "attention",
        **settings: Any,
    ) -> None:
        """Prepare for training; all other arguments are GRPOTrainer's.

        Raises:
            ValueError: `focus_signal` is unknown.
            ModelError: The model is of no supported family.
        """
        if focus_signal not in ("attention", "similarity"):
            raise ValueError(f"focus_signal is {focus_signal!r}; expected attention or similarity")
        super().__init__(*arguments, **settings)
        self.weighting = Weighting() if weighting is None else weighting
        self.focus_signal = focus_signal
        self._family = family_of(self._policy.config)
        use_shared_attention(self._family.bare(self._policy))

    @property
    def _policy(self) -> Any:
        """The model, which TRL's annotations take for anything that could wrap one."""
        return self.model

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's rollouts, with an advantage for each token."""
        rollouts = super()._generate_and_score_completions(inputs)
        if self.weighting.advantage == "vgpo" and rollouts.get("pixel_values") is not None:
            rollouts["advantages"] = self._weighed(rollouts)
        return rollouts

    def _weighed(self, rollouts: dict[str, Any]) -> Float[Tensor, "row token"]:
        """Advantages of this process's rows; a group that lies on several processes is weighed as a whole."""
        mask = rollouts["completion_mask"].bool()
        if "tool_mask" in rollouts:
            mask &= rollouts["tool_mask"].bool()
        rows, tokens = mask.shape
        everywhere = {"focus": self._focus(rollouts), "mask": mask, "image": self._image_mask(rollouts).any(dim=1)}
        for name in ("focus", "mask"):
            everywhere[name] = self.accelerator.pad_across_processes(everywhere[name], dim=1)
        everywhere["advantages"] = rollouts["advantages"]
        everywhere = {name: self.accelerator.gather(values) for name, values in everywhere.items()}
        size = (self.num_generations if self._policy.training else self.num_generations_eval) or 1
        weighed = torch.cat(
            [
                self._weighed_group({name: values[start : start + size] for name, values in everywhere.items()})
                for start in range(0, len(everywhere["mask"]), size)
            ]
        )
        first = self.accelerator.process_index * rows
        return weighed[first : first + rows, :tokens]

    def _weighed_group(self, group: dict[str, Tensor]) -> Float[Tensor, "row token"]:
        """One group; completions without a token that trains take no part in it."""
        trains = group["mask"].any(dim=1)
        weighed = torch.zeros_like(group["focus"])
        if trains.any():
            mask, advantages = group["mask"][trains], group["advantages"][trains]
            focus = group["focus"][trains] if bool(group["image"].all()) else None
            weighed[trains] = weigh(advantages, focus, mask, weighting=self.weighting).to(weighed.dtype)
        return weighed

    def _image_mask(self, rollouts: dict[str, Any]) -> Bool[Tensor, "row prompt"]:
        return rollouts["prompt_ids"].eq(self._policy.config.image_token_id) & rollouts["prompt_mask"].bool()

    def _focus(self, rollouts: dict[str, Any]) -> Float[Tensor, "row token"]:
        """Focus of every completion's tokens, in micro-batches of TRL's own size."""
        prompt_mask, width = rollouts["prompt_mask"].bool(), rollouts["completion_ids"].shape[1]
        reader = _FocusReader(
            self._family,
            self._policy,
            self.focus_signal,
            prompt_mask=prompt_mask,
            image_mask=self._image_mask(rollouts),
        )
        arguments = {name: rollouts[name] for name in _FORWARD_ARGUMENTS if rollouts.get(name) is not None}
        checkpointing = disable_gradient_checkpointing(self._policy, self.args.gradient_checkpointing_kwargs)  # pyright: ignore[reportArgumentType]
        with torch.no_grad(), checkpointing, reader:
            self._get_per_token_logps_and_entropies(
                self._policy,
                torch.cat([rollouts["prompt_ids"], rollouts["completion_ids"]], dim=1),
                torch.cat([rollouts["prompt_mask"], rollouts["completion_mask"]], dim=1),
                width,
                batch_size=self.args.per_device_train_batch_size,
                **arguments,
            )
        return torch.cat(reader.focus)


class _FocusReader:
    """Hooks on the language model that read focus out of every forward made while it is entered.

    Attributes:
        focus: Of each forward's rows, [row, token].
    """

    def __init__(
        self,
        family: Family,
        model: nn.Module,
        signal: str,
        *,
        prompt_mask: Bool[Tensor, "row prompt"],
        image_mask: Bool[Tensor, "row prompt"],
    ) -> None:
        bare = family.bare(model)
        self.focus: list[Float[Tensor, "row token"]] = []
        self._language_model = family.language_model(bare)
        self._layer = family.capture_layer(bare)
        self._signal = signal
        self._prompt_mask = prompt_mask
        self._image_mask = image_mask
        self._watch: AttentionCapture | None = None
        self._hooks: list[Any] = []

    def __enter__(self) -> _FocusReader:
        self._hooks = [
            self._language_model.register_forward_pre_hook(self._before, with_kwargs=True),
            self._language_model.register_forward_hook(self._after),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before(self, _module: nn.Module, arguments: Any, settings: dict[str, Any]) -> Any:
        if self._signal == "similarity":
            return None
        self._watch = AttentionCapture(self._layer)
        return arguments, {**settings, "watch": self._watch}

    def _after(self, _module: nn.Module, _arguments: Any, outputs: Any) -> None:
        states = outputs.last_hidden_state
        first = sum(len(part) for part in self.focus)
        rows = [self._row(first + row, row, states) for row in range(len(states))]
        self.focus.append(torch.stack(rows))

    def _row(self, row: int, place: int, states: Tensor) -> Float[Tensor, " token"]:
        """Focus of one row; `place` is its place in the forward."""
        kept, on_image = self._prompt_mask[row], self._image_mask[row]
        prompt = kept.shape[0]
        if not on_image.any():
            return states.new_zeros(states.shape[1] - prompt, dtype=torch.float32)
        if self._watch is None:
            return similarity_focus(states[place, None, prompt:], states[place, :prompt][on_image])[0]
        query, key, scale = self._watch.seen
        return attention_focus(
            query[place, None, :, prompt - 1 : -1],
            key[place, :, :prompt][:, kept],
            key[place, None, :, prompt:],
            on_image[kept],
            scale=scale,
            chunk_size=FOCUS_CHUNK,
        )[0]
