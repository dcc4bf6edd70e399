"""Seconds and memory of a training step on a GPU, under the limits of consumer cards; no network is needed.

    python benchmarks/gpu.py                       the whole table, within ten minutes; goes on where it stopped
    python benchmarks/gpu.py --models qwen2-vl-2b --limits 8
    python benchmarks/gpu.py --smoke               a model of two layers, also on a CPU: to see that it runs

Models have the true shapes and random weights, in NF4 with LoRA. A card is emulated by a hard limit on what the process
may allocate. Each case is a process of its own: a step to warm up, then a timed one, with the allocator's peak of each
phase. What does not fit says so; a case that failed otherwise keeps its message. Results gather in a log; at the end,
or when the time is up, `benchmarks/results/gpu.json` is written from it with the machine's name.

    ours        the default engine: steps of decoding are CUDA graphs, 4-bit weights dequantized for each
    copy        the same, decoding from a 16-bit copy of the weights (`decode_weights=copy`)
    eager       `ours` without graphs (`memory.decode_graph=false`)
    batched     the ordinary way (`engine=batched`)
    trl         TRL's GRPOTrainer with the frozen tower kept out of its backward pass, where TRL is installed
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measured import claim, lines_of, write_result

CASES = [
    # model, card in GB, image tokens (a square), completions, tokens of each
    ("qwen2-vl-2b", 8, 256, 8, 256),
    ("qwen2-vl-2b", 8, 484, 8, 512),
    ("qwen2-vl-2b", 8, 484, 8, 1024),
    ("qwen2-vl-2b", 16, 484, 16, 512),
    ("qwen2-vl-2b", 24, 1024, 8, 512),
    ("qwen2.5-vl-3b", 8, 256, 8, 256),
    ("qwen2.5-vl-3b", 16, 484, 8, 512),
    ("qwen2.5-vl-3b", 16, 484, 8, 1024),
    ("qwen2.5-vl-3b", 24, 1024, 8, 512),
    ("qwen2.5-vl-7b", 16, 256, 8, 256),
    ("qwen2.5-vl-7b", 24, 484, 8, 512),
]
OUR_SIDES = {
    "ours": {"decode_weights": "quantized", "memory": {"decode_graph": "auto"}},
    "copy": {"decode_weights": "copy", "memory": {"decode_graph": "auto"}},
    "eager": {"decode_weights": "quantized", "memory": {"decode_graph": False}},
    "batched": {"decode_weights": "quantized", "engine": "batched"},
}
"""Settings of each way to take our step."""
SIDES = (*OUR_SIDES, "trl")
SMALL_DECODER = {"num_hidden_layers": 2, "vocab_size": 4096}
SMOKE_CASE = ("qwen2-vl-2b", 8, 16, 2, 6)
TEXT = 64
FOLDER = Path(tempfile.gettempdir()) / "vgpo-lite-gpu"
GIGABYTE = 2**30
WITHIN, NEVER_UNDER = 0.10, -0.03
"""How far a predicted peak may lie from the measured one, and how far below it at most."""


def main() -> None:
    """Run what is missing within the time, and write what there is."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", nargs="+", help="only these presets")
    options.add_argument("--limits", nargs="+", type=int, help="only these cards, in GB")
    options.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    options.add_argument("--seconds", type=float, default=570, help="no case begins after this")
    options.add_argument("--each", type=float, default=150, help="seconds after which one case is ended")
    options.add_argument("--folder", type=Path, default=FOLDER, help="models, and the log of finished cases")
    options.add_argument("--smoke", action="store_true")
    options.add_argument("--one", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.one:
        print(json.dumps(measured(json.loads(chosen.one), chosen.folder)))
        return
    if chosen.smoke:
        chosen.folder = chosen.folder / "smoke"
    chosen.folder.mkdir(parents=True, exist_ok=True)
    path, began = chosen.folder / "log.jsonl", time.monotonic()
    log = lines_of(path)
    for job in jobs(chosen):
        if any(seen["job"] == job for seen in log):
            continue
        if time.monotonic() - began > chosen.seconds:
            print(f"the time is up; run it again to go on ({len(log)} cases are done)", file=sys.stderr)
            break
        log.append({"job": job, "result": in_own_process(job, chosen)})
        with path.open("a") as file:
            file.write(json.dumps(log[-1]) + "\n")
        print(json.dumps(log[-1]), flush=True)
    if not chosen.smoke:
        write(log)


def jobs(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Every case of every side, one model after the other."""
    names = ("model", "limit_gb", "image_tokens", "generations", "completion")
    cases = [dict(zip(names, case, strict=True)) for case in ([SMOKE_CASE] if chosen.smoke else CASES)]
    sides = [side for side in chosen.sides if side != "trl" or importlib.util.find_spec("trl")]
    return [
        {**case, "side": side, "smoke": chosen.smoke}
        for case in cases
        if (not chosen.models or case["model"] in chosen.models)
        and (not chosen.limits or case["limit_gb"] in chosen.limits)
        for side in sides
    ]


def in_own_process(job: dict[str, Any], chosen: argparse.Namespace) -> dict[str, Any]:
    """One case; what it prints last is its result. A failure is a result too."""
    command = [sys.executable, __file__, "--folder", str(chosen.folder), "--one", json.dumps(job)]
    environment = {**os.environ, "TQDM_DISABLE": "1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=chosen.each
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {chosen.each:.0f} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.strip().splitlines()[-1])
    out_of_memory = "OutOfMemoryError" in done.stderr
    last_line = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    return {"failed": "out of memory" if out_of_memory else last_line[-400:]}


def measured(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Build the model unless it is there, warm up, and measure a step."""
    import torch
    from true_shapes import true_settings, write_true_model
    from workload import Work

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not job["smoke"]:
        raise SystemExit("no GPU is to be seen here; --smoke runs anywhere")
    model = folder / job["model"]
    if not (model / "processor_config.json").exists():
        write_true_model(model, true_settings(job["model"], **(SMALL_DECODER if job["smoke"] else {})), device=device)
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        share = job["limit_gb"] * GIGABYTE / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(share, 1.0))
    work = Work(job["image_tokens"], TEXT, job["completion"], job["generations"])
    return of_trl(model, work, device) if job["side"] == "trl" else of_ours(job, model, work, device)


def of_ours(job: dict[str, Any], model: Path, work: Any, device: str) -> dict[str, Any]:
    """A step of vgpo-lite, phase by phase."""
    import torch
    from ours import Steps
    from workload import DATA

    from vgpo_lite.config.load import load_config
    from vgpo_lite.planning import Job, PromptSize, architecture_of, memory_plan, read_json

    config = load_config(
        model=model,
        device=device,
        **OUR_SIDES[job["side"]],
        num_generations=work.generations,
        max_completion_length=work.completion,
        prompts_per_step=1,
        data={"max_pixels": DATA.max_pixels, "max_prompt_length": DATA.max_prompt_length},
    )
    steps = Steps(config, work, clock=synced_clock(device))
    prompt_tokens = int(steps.prompts()[0].input_ids.shape[0])
    size = PromptSize(text_tokens=prompt_tokens - work.image_tokens, images=(work.image_tokens,))
    architecture = architecture_of(read_json(model / "config.json"), name=job["model"])
    plan = memory_plan(Job(model=architecture, config=config, largest=size, device=device))
    predicted = {phase.name: phase.total_bytes for phase in plan.phases}
    steps.step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        steps.peak = peak_since_last
    seconds = steps.step()
    given_up = sorted(name for backoff in steps.backoffs for name in backoff.sizes)
    return {
        "given_up": given_up,
        "step_seconds": seconds.step,
        "rollout_seconds": seconds.rollout,
        "update_seconds": seconds.update + seconds.score,
        "decoded_tokens_per_second": work.generations * work.completion / seconds.rollout,
        "prompt_tokens": prompt_tokens,
        "peak_bytes": steps.peaks,
        "predicted_bytes": predicted,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none",
    }


def of_trl(model: Path, work: Any, device: str) -> dict[str, Any]:
    """A step of GRPOTrainer on the same model in NF4."""
    import torch
    from trl_peer import trainer_of, watched_steps

    trainer = trainer_of(
        model,
        work,
        checkpointing=True,
        tower_in_backward=False,
        clock=synced_clock(device),
        records_memory=False,
        quantized=True,
    )
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seen = watched_steps(trainer)
    peak = {"step": int(torch.cuda.max_memory_allocated())} if device == "cuda" else {}
    return {
        "step_seconds": seen["step"],
        "rollout_seconds": seen["rollout"],
        "update_seconds": seen["update"],
        "decoded_tokens_per_second": work.generations * work.completion / seen["rollout"],
        "peak_bytes": peak,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none",
    }


def synced_clock(device: str) -> Any:
    """Seconds, read when the GPU has done what it was told."""
    import torch

    def read() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return read


def peak_since_last() -> int:
    """The allocator's peak since this was last asked."""
    import torch

    peak = int(torch.cuda.max_memory_allocated())
    torch.cuda.reset_peak_memory_stats()
    return peak


def write(log: list[dict[str, Any]]) -> None:
    """Leave the table, and how far predictions were off."""
    errors = [
        max(seen["result"]["predicted_bytes"].values()) / max(seen["result"]["peak_bytes"].values()) - 1
        for seen in log
        if seen["job"]["side"] in ("ours", "copy", "eager") and seen["result"].get("peak_bytes")
    ]
    claims = []
    if errors:
        claims = [
            claim("largest error of a predicted peak", round(max(abs(e) for e in errors), 4), "<=", WITHIN, "share"),
            claim("most that a peak was predicted too low", round(min(errors), 4), ">=", NEVER_UNDER, "share"),
        ]
    gpus = {seen["result"]["gpu"] for seen in log if "gpu" in seen["result"]}
    columns = ["model", "card", "image tokens", "completions", "side", "step", "decoding", "peak", "predicted"]
    measurements = {"table": {"columns": columns, "rows": [table_row(seen) for seen in log]}, "log": log}
    packages = ("torch", "transformers", "peft", "bitsandbytes")
    gpu = ", ".join(sorted(gpus)) or "none"
    print(write_result("gpu", measurements=measurements, claims=claims, packages=packages, gpu=gpu))


def table_row(seen: dict[str, Any]) -> list[str]:
    """One case as a reader wants it."""
    job, result = seen["job"], seen["result"]
    kind = [
        job["model"],
        f"{job['limit_gb']} GB",
        str(job["image_tokens"]),
        f"{job['generations']} x {job['completion']}",
        job["side"],
    ]
    if "failed" in result:
        return [*kind, result["failed"], "-", "-", "-"]
    predicted = result.get("predicted_bytes")
    return [
        *kind,
        f"{result['step_seconds']:.1f} s",
        f"{result['decoded_tokens_per_second']:.0f} tokens/s",
        f"{max(result['peak_bytes'].values(), default=0) / GIGABYTE:.2f} GiB",
        f"{max(predicted.values()) / GIGABYTE:.2f} GiB" if predicted else "-",
    ]


if __name__ == "__main__":
    main()
