"""Seconds per phase and peak memory of one training step, for a model, a prompt and a group size, as JSON.

    python benchmarks/step.py                                            52 million parameters, 256 image tokens
    python benchmarks/step.py --model qwen2-vl-2b --image-tokens 1024 --generations 16 --completion 300
    python benchmarks/step.py --model 52m --set engine=batched           the ordinary way, for comparison

`--write NAME` also leaves benchmarks/results/NAME.json. On a CPU, memory is that of tensors above the loaded model; on
a GPU it is the device's peak above it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from measured import write_result
from ours import Steps, medians
from workload import DATA, SHAPES, Work, peak_allocation, write_model

from vgpo_lite.config.load import load_config


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="52m", help=f"preset, hub id or folder; or random: {', '.join(SHAPES)}")
    options.add_argument("--image-tokens", type=int, default=256, help="tokens of the image, a square number")
    options.add_argument("--text-tokens", type=int, default=64, help="tokens of the question")
    options.add_argument("--completion", type=int, default=64, help="tokens of each completion")
    options.add_argument("--generations", type=int, default=8, help="completions per prompt")
    options.add_argument("--prompts", type=int, default=1, help="prompts per step")
    options.add_argument("--repeat", type=int, default=3, help="timed steps, of which the median counts")
    options.add_argument("--set", action="append", default=[], help="any setting, as in `vgpo-lite train --set`")
    options.add_argument("--write", help="name of a result to write")
    chosen = options.parse_args()
    work = Work(chosen.image_tokens, chosen.text_tokens, chosen.completion, chosen.generations)
    with tempfile.TemporaryDirectory() as folder:
        model = chosen.model
        if model in SHAPES:
            write_model(Path(folder), SHAPES[model])
            model = folder
        measurements = measure(model, work, chosen)
    print(json.dumps(measurements, indent=2))
    if chosen.write:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        packages = ("torch", "transformers", "peft", "bitsandbytes")
        write_result(chosen.write, measurements=measurements, claims=[], packages=packages, gpu=gpu)


def measure(model: str, work: Work, chosen: argparse.Namespace) -> dict[str, object]:
    """One step to warm up, some timed, one more for memory."""
    fixed = [
        f"num_generations={work.generations}",
        f"max_completion_length={work.completion}",
        f"prompts_per_step={chosen.prompts}",
        f"data.max_pixels={DATA.max_pixels}",
        f"data.max_prompt_length={DATA.max_prompt_length}",
        "max_steps=1000",
    ]
    config = load_config(model=model, overrides=(*fixed, *chosen.set))
    steps = Steps(config, work)
    steps.step()
    timed = medians([steps.step() for _ in range(chosen.repeat)])
    if steps.policy.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        steps.step()
        peak = torch.cuda.max_memory_allocated() - held
    else:
        peak = peak_allocation(steps.step)
    return {
        "model": chosen.model,
        "work": vars(work) | {"prompt": int(steps.prompts()[0].input_ids.shape[0]), "prompts": chosen.prompts},
        "settings": list(chosen.set),
        **timed,
        "peak_bytes_above_model": peak,
        "model_bytes": steps.policy.weight_bytes(),
    }


if __name__ == "__main__":
    main()
