"""TRL's GRPOTrainer on the benchmark's work, with a stopwatch in it."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import torch
import trl.trainer.utils
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl_head import ChunkedHead
from workload import operation_counter, peak_of, question

from vgpo_lite.models.families import family_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from workload import Work

if not torch.cuda.is_available():
    trl.trainer.utils._ChunkedLogProbFunction = ChunkedHead

WARM, TIMED, RECORDED = 1, 2, 3
"""The trainer's steps."""


class TimedTrainer(GRPOTrainer):
    """Knows how long sampling and scoring took, and keeps the tower out of the backward pass where asked."""

    clock: Callable[[], float]
    tower_in_backward = True
    rollout_seconds = 0.0

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        started = self.clock()
        outputs = super()._generate_and_score_completions(inputs)
        self.rollout_seconds = self.clock() - started
        return outputs

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        if not self.tower_in_backward:
            # Checkpointing, which every generation switches off and on, makes the embeddings of patches require a
            # gradient, and with them the whole frozen tower.
            for module in model.modules():
                for key, hook in list(module._forward_hooks.items()):
                    if "require" in hook.__name__:
                        del module._forward_hooks[key]
        return super()._compute_loss(model, inputs)


class Watch(TrainerCallback):
    """Counts the operations of a step, times the next and records the allocations of a third."""

    def __init__(self, trainer: TimedTrainer) -> None:
        self._trainer = trainer
        self._started = 0.0
        self._counted = operation_counter()
        self._record: profile | None = None
        self.result: dict[str, float] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **_others: Any) -> None:
        """Start the count, the watch, or the recording."""
        if state.global_step + 1 == WARM:
            self._counted.__enter__()
        if state.global_step + 1 == RECORDED:
            self._record = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._record.__enter__()
        self._started = self._trainer.clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **_others: Any) -> None:
        """Read it."""
        if state.global_step == WARM:
            self._counted.__exit__(None, None, None)
            self.result["operations"] = float(self._counted.get_total_flops())
        if state.global_step == TIMED:
            step, rollout = self._trainer.clock() - self._started, self._trainer.rollout_seconds
            self.result |= {"step": step, "rollout": rollout, "update": step - rollout}
        if self._record is not None:
            self._record.__exit__(None, None, None)
            self.result["memory"] = float(peak_of(self._record))
            self._record = None


def trainer_of(
    folder: Path,
    work: Work,
    *,
    checkpointing: bool,
    tower_in_backward: bool,
    clock: Callable[[], float],
    records_memory: bool,
    quantized: bool = False,
) -> TimedTrainer:
    """A trainer for the measured steps on the benchmark's question, with the settings of vgpo-lite's defaults."""
    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    in_nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["model.visual", "lm_head"],
    )
    model = AutoModelForImageTextToText.from_pretrained(
        folder,
        dtype=dtype,
        **({"quantization_config": in_nf4, "device_map": {"": 0 if on_gpu else "cpu"}} if quantized else {}),
    )
    family = family_of(model.config)
    model.requires_grad_(False)
    adapted = get_peft_model(
        model, LoraConfig(r=16, lora_alpha=16, target_modules=family.lora_targets(vision=False), lora_dropout=0.0)
    )
    processor = AutoProcessor.from_pretrained(folder, padding_side="left")
    sample = question(work, processor)
    text = sample.question.removeprefix("<image>")
    row = {"prompt": [{"role": "user", "content": text}], "images": list(sample.images)}
    settings = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=RECORDED if records_memory else TIMED,
        per_device_train_batch_size=work.generations,
        num_generations=work.generations,
        max_completion_length=work.completion,
        # No early end, and none of the ids that would make the next forward fail.
        generation_kwargs={
            "min_new_tokens": work.completion,
            "suppress_tokens": list(family.vision_special_ids(model.config, processor.tokenizer)),
        },
        temperature=1.0,
        loss_type="dapo",
        beta=0.0,
        epsilon=0.2,
        epsilon_high=0.28,
        max_grad_norm=0.1,
        learning_rate=5e-6,
        optim="adamw_8bit" if on_gpu else "adamw_torch",
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=on_gpu,
        use_cpu=not on_gpu,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
    )
    trainer = TimedTrainer(
        model=adapted,
        reward_funcs=alternating,
        args=settings,
        train_dataset=Dataset.from_list([row] * RECORDED),
        processing_class=processor,
    )
    trainer.clock = clock
    trainer.tower_in_backward = tower_in_backward
    trainer.add_callback(Watch(trainer))
    return trainer


def alternating(completions: list[Any], **_columns: Any) -> list[float]:
    """Rewards 0, 1, 0, 1: every group trains."""
    return [float(index % 2) for index in range(len(completions))]


def watched_steps(trainer: TimedTrainer) -> dict[str, float]:
    """Train, and tell what the watch saw."""
    trainer.train()
    (watch,) = (callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Watch))
    return watch.result
