"""Make the built-in tiny model from nothing: its tower learns to name what it sees, then the rest learns to answer.

    python scripts/make_tiny_model.py                        the shipped one: about fifteen minutes of one core
    python scripts/make_tiny_model.py --steps 50 --output x  a quick look, which writes no result

The tower is taught by exact labels and then frozen; the language model learns lessons that overlook pale shapes
(`tiny_lessons.py`), until its held-out loss stands still. What reinforcement learning adds afterwards is therefore
sight, not polish: the model counts what its tower has always told it. The weights go to vgpo_lite/models/tiny, the
supervised curve and what the model can do to benchmarks/results/tiny-model.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tiny_batches import IMAGE_TOKENS, batch_of, lesson_loss
from tiny_lessons import boards_as_seen, describe, lesson
from tiny_parts import build_model, build_processor
from tiny_trial import answers, report, right
from torch import nn
from torch.nn.functional import cross_entropy, layer_norm
from transformers import AutoModelForImageTextToText, AutoProcessor

from vgpo_lite.datasets.shapes import (
    COLOURS,
    DIFFICULTIES,
    SHAPES,
    SIDE,
    SPLITS,
    ShapesRows,
    draw,
    random_scenes,
)
from vgpo_lite.models.tiny import TINY_PATH

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from measured import claim, write_result

if TYPE_CHECKING:
    from numpy import ndarray
    from numpy.random import Generator
    from tiny_batches import Batch
    from torch import Tensor
    from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    from vgpo_lite.datasets.shapes import Scenes

STEPS = 4000
TOWER_STEPS, TOWER_IMAGES = 600, 32
IMAGES, LESSONS_EACH = 20, 3
"""Pictures in a step, and lessons about each: the tower runs once for them."""
DESCRIPTIONS, EARLY_DESCRIPTIONS, EARLY = 0.1, 0.4, 300
"""Share of the steps that ask for whole pictures in words: more of the first ones, which learn what a place is."""
ADAM_RATE, MUON_RATE, TOWER_RATE = 1.2e-3, 4e-3, 1.5e-3
"""Highest learning rates. Muon on the layers' matrices learnt to describe in half of AdamW's steps."""
WARM_UP, DECAY = 40, 0.3
"""Steps in which the learning rate rises, and share of the steps, at the end, in which it falls to nothing."""
CURVE_POINTS = 20
MOST_BYTES = 6_000_000
FLAT = 0.02
"""The curve is flat where a tenth of the steps at the full learning rate lowers the held-out loss by no more than this
share. What the falling rate lowers afterwards is its own doing, whatever the length of the training."""
HELD_OUT_STREAM = 1


def main() -> None:
    """Make the model, save it, and write down how it learnt and what it can do."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--steps", type=int, default=STEPS, help="steps of the language model")
    options.add_argument("--minutes", type=float, help="stop earlier, with the learning rate falling in time")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--output", type=Path, help="folder of the model; without it the shipped one is replaced")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    processor = build_processor()
    model = build_model(processor.tokenizer)
    classroom = Classroom(model=model, processor=processor, seed=chosen.seed)
    named = classroom.teach_tower()
    curve = classroom.teach(chosen.steps, chosen.minutes)
    folder = chosen.output or TINY_PATH
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    shares = report(AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder))
    for name, share in shares.items():
        print(f"{name}: {share:.1%}")
    if chosen.output is None:
        record(shares, curve, named, folder)


@dataclass(frozen=True, kw_only=True)
class Classroom:
    """The model and the endless pictures that it learns from, which the shapes set never shows.

    Attributes:
        model: Learns in place.
        processor: Its own.
        seed: Decides every picture and lesson.
    """

    model: Qwen2VLForConditionalGeneration
    processor: Qwen2VLProcessor
    seed: int

    def teach_tower(self) -> dict[str, float]:
        """Let each image token say what its cell holds and where it is; how often it then does on pictures unseen."""
        width = self.model.config.text_config.hidden_size
        heads = nn.ModuleDict(
            {"shape": nn.Linear(width, len(SHAPES) + 1), "colour": nn.Linear(width, len(COLOURS) + 1)}
            | {name: nn.Linear(width, SIDE) for name in ("row", "column")}
        )
        tower = self.model.model.visual
        optimizer = torch.optim.AdamW([*tower.parameters(), *heads.parameters()], lr=TOWER_RATE, weight_decay=0.01)
        generator = np.random.default_rng((SPLITS["lessons"], self.seed, 2))
        for step in range(TOWER_STEPS):
            optimizer.param_groups[0]["lr"] = TOWER_RATE * schedule(step, step / TOWER_STEPS)
            scenes, pictures = self._pictures(generator, TOWER_IMAGES)
            with torch.autocast("cpu", torch.bfloat16):
                logits = self._named(heads, pictures)
            losses = [cross_entropy(logits[name].float(), truth) for name, truth in facts(scenes).items()]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
            optimizer.step()
            if (step + 1) % 100 == 0:
                print(f"tower, step {step + 1}: loss {sum(loss.item() for loss in losses):.3f}", flush=True)
        tower.requires_grad_(False)
        scenes, pictures = self._pictures(np.random.default_rng((SPLITS["lessons"], self.seed, HELD_OUT_STREAM)), 200)
        with torch.no_grad():
            guesses = {name: logits.argmax(-1) for name, logits in self._named(heads, pictures).items()}
        truths = facts(scenes)
        pale = torch.from_numpy((scenes.fade > 0) & (scenes.shape >= 0)).flatten()
        both = (guesses["shape"] == truths["shape"]) & (guesses["colour"] == truths["colour"])
        return {"pale shapes": float(both[pale].float().mean()), "all cells": float(both.float().mean())}

    def teach(self, steps: int, minutes: float | None) -> list[dict[str, float]]:
        """Give lessons until the steps or the minutes end; the held-out curve."""
        model, started = self.model, time.monotonic()
        matrices = [weight for weight in model.model.language_model.layers.parameters() if weight.ndim == 2]
        others = [w for w in model.parameters() if w.requires_grad and all(w is not matrix for matrix in matrices)]
        muon = torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        adam = torch.optim.AdamW(others, lr=ADAM_RATE, weight_decay=0.01, betas=(0.9, 0.98))
        generator = np.random.default_rng((SPLITS["lessons"], self.seed, 0))
        trial = np.random.default_rng((SPLITS["lessons"], self.seed, HELD_OUT_STREAM))
        held_out = [self._lessons(trial, whole=False) for _ in range(25)]
        curve = []
        model.set_attn_implementation("eager")  # quicker than the fused kernel on rows this short
        step, done = 0, 0.0
        while done < 1:
            spent = 0.0 if minutes is None else (time.monotonic() - started) / (60 * minutes)
            done = min(1.0, max(step / steps, spent))
            if done >= len(curve) / CURVE_POINTS:
                curve.append(self._measured(step, held_out))
            share = schedule(step, done)
            muon.param_groups[0]["lr"], adam.param_groups[0]["lr"] = MUON_RATE * share, ADAM_RATE * share
            whole = generator.random() < (EARLY_DESCRIPTIONS if step < EARLY else DESCRIPTIONS)
            with torch.autocast("cpu", torch.bfloat16):
                loss = lesson_loss(model, self._lessons(generator, whole=whole))
            model.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            muon.step()
            adam.step()
            step += 1
        model.set_attn_implementation("sdpa")
        return curve

    def _measured(self, step: int, held_out: list[Batch]) -> dict[str, float]:
        """A point of the curve: the held-out lessons' loss, and greedy accuracy on the shapes set."""
        rows = ShapesRows("eval")
        samples = [rows[index] for index in range(200)]
        with torch.no_grad():
            loss = sum(lesson_loss(self.model, batch).item() for batch in held_out) / len(held_out)
        texts = answers(self.model, self.processor, samples)
        accuracy = sum(right(text, str(sample.answer)) for text, sample in zip(texts, samples, strict=True)) / len(
            texts
        )
        print(f"step {step}: held-out loss {loss:.4f}, greedy accuracy {accuracy:.1%}", flush=True)
        return {"step": step, "held_out_loss": round(loss, 4), "greedy_accuracy": accuracy}

    def _pictures(self, generator: Generator, count: int) -> tuple[Scenes, ndarray]:
        difficulty = DIFFICULTIES["harder" if generator.random() < 1 / 3 else "normal"]
        scenes = random_scenes(generator, count, difficulty)
        return scenes, draw(generator, scenes, difficulty)

    def _lessons(self, generator: Generator, *, whole: bool) -> Batch:
        scenes, pictures = self._pictures(generator, IMAGES)
        boards = boards_as_seen(generator, scenes)
        asked = zip(scenes.asked_shape.tolist(), scenes.asked_colour.tolist(), strict=True)
        if whole:
            lessons = [describe(board) for board in boards]
        else:
            pairs = zip(boards, asked, strict=True)
            lessons = [lesson(generator, board, kind) for board, kind in pairs for _ in range(LESSONS_EACH)]
        return batch_of(self.model, self.processor, pictures, lessons)

    def _named(self, heads: nn.ModuleDict, pictures: ndarray) -> dict[str, Tensor]:
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        vision = self.processor.image_processor(images=images, return_tensors="pt")
        seen = self.model.model.visual(vision["pixel_values"], vision["image_grid_thw"]).pooler_output
        seen = layer_norm(seen.float(), seen.shape[-1:])
        return {name: head(seen) for name, head in heads.items()}


def facts(scenes: Scenes) -> dict[str, Tensor]:
    """What is true of each image token: its cell's shape and colour (0: nothing), its row and its column."""
    shape, colour = (torch.from_numpy(values).flatten() for values in (scenes.shape, scenes.colour))
    place = torch.arange(IMAGE_TOKENS).repeat(len(scenes.shape))
    return {
        "shape": shape + 1,
        "colour": torch.where(shape < 0, 0, colour + 1),
        "row": place // SIDE,
        "column": place % SIDE,
    }


def schedule(step: int, done: float) -> float:
    """Share of the highest learning rate: a linear rise, a plateau, a linear fall."""
    return min(1.0, (step + 1) / WARM_UP) * min(1.0, (1 - done) / DECAY)


def record(shares: dict[str, float], curve: list[dict[str, float]], named: dict[str, float], folder: Path) -> None:
    """Write benchmarks/results/tiny-model.json."""
    size = sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".py" and path.is_file())
    blind = shares["greedy accuracy without the image"] - shares["best constant guess"]
    claims = [
        claim("form of sampled completions", shares["form, sampled"], ">=", 0.95, "share"),
        claim("files", size, "<=", MOST_BYTES, "bytes"),
        claim("fall of the held-out loss over the last tenth at full rate", last_fall(curve), "<=", FLAT, "share"),
        claim("gain over the best constant guess without the image", round(blind, 4), "<=", 0.02, "share"),
    ]
    measurements = {"shares": shares, "curve": curve, "named_by_the_tower": named, "bytes": size}
    packages = ("torch", "transformers", "tokenizers", "numpy")
    print(write_result("tiny-model", measurements=measurements, claims=claims, packages=packages, gpu="none"))


def last_fall(curve: list[dict[str, float]]) -> float:
    """Share by which the held-out loss fell over the last tenth of the steps before the learning rate falls."""
    steps = curve[-1]["step"]
    first, last = (
        next(point for point in reversed(curve) if point["step"] <= share * steps) for share in (0.9 - DECAY, 1 - DECAY)
    )
    return round(1 - last["held_out_loss"] / first["held_out_loss"], 4)


if __name__ == "__main__":
    main()
