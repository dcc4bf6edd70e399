"""VGPO's weights in TRL's trainer: focus as eager attention gives it, and the weights that follow from it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
import trl.trainer.utils
from datasets import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig, GRPOTrainer

from benchmarks.trl_head import ChunkedHead
from vgpo_lite.algorithm.focus import similarity_focus
from vgpo_lite.algorithm.weigh import Weighting, weigh
from vgpo_lite.datasets.shapes import ShapesRows
from vgpo_lite.integrations.trl import VGPOTrainer
from vgpo_lite.models.tiny import TINY_PATH

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GROUP, PROMPTS, LENGTH = 4, 2, 20
TOLERANCE = 1e-5
SIMILARITY_TOLERANCE = 2e-3
"""States of one image resemble each other: what scales their small differences to [0, 1] scales rounding with them."""


@dataclass
class Step:
    """What one optimizer step worked on, and what it left."""

    rollouts: dict[str, Any]
    weights: dict[str, torch.Tensor]


def alternating(completions: list[Any], **_columns: Any) -> list[float]:
    return [float(index % 3 == 0) for index in range(len(completions))]


def step(kind: type[GRPOTrainer], folder: Path, **settings: Any) -> Step:
    rows = ShapesRows("eval")
    questions = [rows[index] for index in range(PROMPTS)]
    table = [
        {
            "prompt": [{"role": "user", "content": "so " * index + sample.question.removesuffix("<image>")}],
            "images": list(sample.images),
        }
        for index, sample in enumerate(questions)
    ]
    arguments = GRPOConfig(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=GROUP,
        gradient_accumulation_steps=PROMPTS,
        num_generations=GROUP,
        max_completion_length=LENGTH,
        learning_rate=1e-3,
        beta=0.0,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
        mask_truncated_completions=False,
    )
    trainer = kind(
        model=AutoModelForImageTextToText.from_pretrained(TINY_PATH, dtype=torch.float32),
        reward_funcs=alternating,
        args=arguments,
        train_dataset=Dataset.from_list(table),
        processing_class=AutoProcessor.from_pretrained(TINY_PATH, padding_side="left"),
        **settings,
    )
    seen: list[dict[str, Any]] = []
    sample = trainer._generate_and_score_completions

    def remembered(inputs: Any) -> Any:
        seen.append(sample(inputs))
        return dict(seen[-1])

    trainer._generate_and_score_completions = remembered
    trainer.train()
    return Step(seen[0], {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()})


@pytest.fixture(scope="module", autouse=True)
def _head_without_triton() -> Iterator[None]:
    """TRL's own head needs a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", ChunkedHead)
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Step:
    return step(GRPOTrainer, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Step:
    return step(VGPOTrainer, tmp_path_factory.mktemp("guided"))


@torch.no_grad()
def eager_focus(rollouts: dict[str, Any], signal: str) -> torch.Tensor:
    """Focus of each token, row by row without padding, from eager attention weights or hidden states."""
    model = AutoModelForImageTextToText.from_pretrained(TINY_PATH, attn_implementation="eager", dtype=torch.float32)
    patches = rollouts["image_grid_thw"].prod(dim=1).tolist()
    images = torch.split(rollouts["pixel_values"], patches)
    focus = torch.zeros(rollouts["completion_ids"].shape)
    for row, (completion, kept) in enumerate(
        zip(rollouts["completion_ids"], rollouts["completion_mask"].bool(), strict=True)
    ):
        prompt = rollouts["prompt_ids"][row][rollouts["prompt_mask"][row].bool()]
        ids = torch.cat([prompt, completion[kept]])[None]
        on_image = ids[0] == model.config.image_token_id
        seen = model(
            input_ids=ids,
            pixel_values=images[row],
            image_grid_thw=rollouts["image_grid_thw"][row : row + 1],
            mm_token_type_ids=on_image[None].long(),
            output_attentions=True,
            output_hidden_states=True,
        )
        count = int(kept.sum())
        if signal == "attention":
            mass = seen.attentions[-1][0][:, :, on_image].sum(dim=-1).mean(dim=0)
            focus[row, :count] = mass[len(prompt) - 1 : -1]
        else:
            states = seen.hidden_states[-1][0]
            focus[row, :count] = similarity_focus(states[None, len(prompt) :], states[on_image])[0]
    return focus


def expected(rollouts: dict[str, Any], rewards: torch.Tensor, weighting: Weighting, signal: str) -> torch.Tensor:
    focus, mask = eager_focus(rollouts, signal), rollouts["completion_mask"].bool()
    return torch.cat(
        [
            weigh(
                rewards[start : start + GROUP],
                focus[start : start + GROUP],
                mask[start : start + GROUP],
                weighting=weighting,
            )
            for start in range(0, GROUP * PROMPTS, GROUP)
        ]
    )


def test_advantages_are_those_of_eager_attention(plain: Step, guided: Step) -> None:
    assert torch.equal(plain.rollouts["completion_ids"], guided.rollouts["completion_ids"])
    assert int(guided.rollouts["prompt_mask"].sum(dim=1).unique().numel()) > 1  # one of the prompts is padded
    wanted = expected(guided.rollouts, plain.rollouts["advantages"], Weighting(), "attention")
    torch.testing.assert_close(guided.rollouts["advantages"], wanted, rtol=TOLERANCE, atol=TOLERANCE)
    assert (wanted - plain.rollouts["advantages"][:, None])[
        guided.rollouts["completion_mask"].bool()
    ].abs().max() > 0.05


def test_similarity_and_the_options_of_weighting_are_passed_on(plain: Step, tmp_path: Path) -> None:
    weighting = Weighting(sign="positive", accumulation="mean", beta=1.0)
    found = step(VGPOTrainer, tmp_path, weighting=weighting, focus_signal="similarity").rollouts
    wanted = expected(found, plain.rollouts["advantages"], weighting, "similarity")
    torch.testing.assert_close(found["advantages"], wanted, rtol=SIMILARITY_TOLERANCE, atol=SIMILARITY_TOLERANCE)


def test_the_weights_change_the_update_and_weights_of_one_do_not(plain: Step, guided: Step, tmp_path: Path) -> None:
    unweighted = step(VGPOTrainer, tmp_path, weighting=Weighting(advantage="grpo"))
    for name, weight in plain.weights.items():
        torch.testing.assert_close(unweighted.weights[name], weight, rtol=TOLERANCE, atol=1e-7)
    assert any(not torch.allclose(guided.weights[name], weight, atol=1e-6) for name, weight in plain.weights.items())


def test_no_hook_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[Any] = []
    original = VGPOTrainer._focus

    def kept(self: VGPOTrainer, rollouts: dict[str, Any]) -> torch.Tensor:
        models.append(self._family.language_model(self._family.bare(self.model)))
        return original(self, rollouts)

    monkeypatch.setattr(VGPOTrainer, "_focus", kept)
    step(VGPOTrainer, tmp_path)
    assert not models[0]._forward_hooks
    assert not models[0]._forward_pre_hooks


def test_an_unknown_signal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="focus_signal is 'eyes'; expected attention or similarity"):
        VGPOTrainer(focus_signal="eyes")


def test_without_trl_the_import_says_what_to_install() -> None:
    program = "import sys; sys.modules['trl'] = None; import vgpo_lite.integrations.trl"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert 'pip install "vgpo-lite[trl]"' in done.stderr
