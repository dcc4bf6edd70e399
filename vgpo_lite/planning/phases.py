"""Predicted bytes of each phase of a step, part by part.

The device's allocator holds tensors; what a phase holds at its worst moment is added up here along the engine's code
(docs/engine.md, docs/memory.md), for the largest group of the data with every completion at its limit. Nothing is
fitted: a number that is not a size of the model or a setting is the itemsize of a format or a count of tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vgpo_lite.listening import MemoryPhase
from vgpo_lite.planning.layer import FLOAT, LayerCosts, layer_costs
from vgpo_lite.planning.weights import (
    adapted_linears,
    adapter_matrices,
    copy_bytes,
    state_bytes,
    weight_bytes,
)

if TYPE_CHECKING:
    from vgpo_lite.planning.job import Job
    from vgpo_lite.planning.update import UpdatePlan

INDEX = 8
"""Bytes of an index."""


def memory_phases(job: Job) -> tuple[MemoryPhase, ...]:
    """Every phase of a run with what it holds at its worst moment."""
    held = held_parts(job)
    phases = {"vision": vision_parts(job)}
    if job.trains:
        phases |= {
            "rollout": rollout_parts(job, prompts=job.prompts_at_once, group=job.rows_at_once),
            "score": score_parts(job),
            "update": update_parts(job),
            "optimizer": optimizer_parts(job),
        }
    if job.measured_at_once:
        phases["measuring"] = rollout_parts(job, prompts=job.measured_at_once, group=1)
    return tuple(
        MemoryPhase(name=name, parts={part: size for part, size in {**held, **parts}.items() if size})
        for name, parts in phases.items()
    )


def held_parts(job: Job) -> dict[str, int]:
    """What is there during every phase."""
    config, model = job.config, job.model
    matrices = adapter_matrices(adapted_linears(model, vision=config.lora.vision), rank=config.lora.r)
    quantized = config.quantization == "nf4"
    weights = weight_bytes(model, quantized=quantized, itemsize=job.itemsize)
    copy = copy_bytes(model, itemsize=job.itemsize) if config.decodes_from_copy else 0
    if not job.trains:
        return {"weights": weights, "copy for decoding": copy, "adapters": FLOAT * sum(matrices)}
    return {
        "weights": weights,
        "copy for decoding": copy,
        "adapters": FLOAT * (sum(matrices) + sum(matrices[1::2])),  # every B twice, until one update has moved it
        "optimizer": state_bytes(matrices, in_8_bits=job.uses_8bit_optimizer),
    }


def costs_of(job: Job) -> LayerCosts:
    """What a decoder layer of the job takes."""
    config = job.config
    return layer_costs(job.model, itemsize=job.itemsize, rank=config.lora.r, quantized=config.quantization == "nf4")


def feature_bytes(job: Job, prompts: int) -> int:
    """Image features of some prompts, and those for the first layers of the language model."""
    vision = job.model.vision
    return prompts * job.prompt.image_tokens * vision.output * (1 + vision.deepstack) * job.itemsize


def vision_parts(job: Job) -> dict[str, int]:
    """The tower over one prompt's images, without a graph: the worst block, or the merger."""
    vision, patches, size = job.model.vision, job.patches, job.itemsize
    copies = size < FLOAT
    # A block: what goes on, its norm, queries, keys and values; then queries and keys in float32 while they are turned.
    turning = 5 * size * vision.width + (5 + 1) * FLOAT * vision.width
    inside = 2 * size * vision.width + 3 * size * vision.inner
    merging = 2 * size * vision.width + 2 * size * vision.width
    kept = (vision.depth + 1) * size * vision.width if vision.keeps_states else 0
    return {
        "image features": feature_bytes(job, job.kept_prompts),
        "vision tower": patches * (kept + max(turning, inside, merging)),
        "pixels": patches * vision.patch_numbers * (FLOAT + (size if copies else 0)),
    }


def rollout_parts(job: Job, *, prompts: int, group: int) -> dict[str, int]:
    """Prompts one after the other, then all their completions token by token: the larger of the two moments."""
    costs, model, config, size = costs_of(job), job.model, job.config, job.itemsize
    tokens, length, rows = job.prompt.tokens, config.max_completion_length, prompts * group
    if config.engine == "batched":
        prompts, rows = group, group
    layer_keys = costs.keys_values
    prompt_keys = prompts * tokens * layer_keys * model.layers
    own_keys = rows * length * layer_keys * model.layers
    scores = FLOAT * rows * model.heads * (tokens + length)  # on the prompt and on the completion's own tokens
    in_float = FLOAT * rows * length * model.key  # a layer's own keys, for the scores
    keys = {"prompt keys and values": prompt_keys, "completion keys and values": own_keys}
    drawn_from = {"logits": rows * model.vocabulary * size}
    drawing = {"logits": rows * model.vocabulary * (size + 3 * FLOAT + 2)}  # scores, weights, sums, two masks
    forward = {"activations": rows * costs.forward, "workspace": costs.workspace}
    # Scores beside the joined ones and their weights, or keys in float32.
    attending, moving = max(3 * scores, scores + in_float), rows * length * layer_keys // 2
    decoding = (
        keys | drawing,
        keys | drawn_from | forward,
        keys | drawn_from | {"activations": max(attending, moving)},  # or a layer's old room beside the new one
    )
    if job.decodes_by_graph:  # it keeps what its step needs while tokens are drawn and room grows
        graph = {"decode graph": max(sum(forward.values()), attending)}
        decoding = (keys | drawing | graph, keys | drawn_from | graph | {"activations": moving})
    prefill = {
        # Each prompt leaves its own behind before they are copied into the batch's.
        "prompt keys and values": prompt_keys + tokens * layer_keys * model.layers,
        "activations": tokens * costs.input + costs.forward_bytes(tokens),
        "masks": mask_bytes(job, prompt=tokens, flat=0),
    }
    encoding = {"prompt keys and values": prompt_keys, **vision_parts(job)}
    features = {"image features": feature_bytes(job, job.kept_prompts)}
    moments = (features | moment for moment in (*decoding, prefill, encoding))
    return max(moments, key=lambda parts: sum(parts.values()))


def logit_bytes(job: Job, *, tokens: int) -> int:
    """Logits of a chunk of tokens: in the model's format beside their float32 copy."""
    chunk = min(job.config.memory.logprob_tokens, tokens)
    copies = job.itemsize < FLOAT
    return chunk * job.model.vocabulary * (FLOAT + job.itemsize * copies)


def focus_bytes(job: Job, *, rows: int) -> int:
    """Reading attention off the focus layer: scores of a chunk of each completion, its queries and keys padded."""
    model, config = job.model, job.config
    if config.focus.signal != "attention" or not job.prompt.image_tokens:
        return 0
    length = config.max_completion_length
    chunk = min(config.memory.focus_tokens, length)
    scores = FLOAT * rows * model.heads * chunk * (job.prompt.tokens + length)
    padded = rows * length * (model.query + model.key) * job.itemsize
    return scores + padded + FLOAT * rows * (length * model.key + chunk * model.query)


def mask_bytes(job: Job, *, prompt: int, flat: int) -> int:
    """What says which keys each token sees, where layers see a window and images see themselves (`engine.sight`).

    One of bools for each kind of layer; the one at hand once more, turned over and in numbers to be added to scores.
    """
    window, length = job.model.window, job.config.max_completion_length
    if not window:
        return 0
    if job.config.engine == "batched":  # transformers' own, for copies of the prompt with completions behind them
        row = job.prompt.tokens + (length if flat else 0)
        rows = flat // row or 1
        return rows * row**2 * (2 + job.itemsize)
    narrow = int(window < prompt)  # a wider window sees as much of a prompt as layers without one
    of_prompt = prompt**2 * (1 + narrow if job.prompt.image_tokens else narrow)
    of_completions = flat * prompt * (prompt + length > window) + length**2 * (length > window)
    return of_prompt + of_completions + (1 + job.itemsize) * max(min(of_prompt, prompt**2), of_completions)


def score_parts(job: Job) -> dict[str, int]:
    """A pass without a graph: the first step's check, reference log-probabilities, several updates per rollout."""
    costs, model, plan, size = costs_of(job), job.model, job.update_plan, job.itemsize
    prompt, flat = _lengths(job, plan)
    after = max(logit_bytes(job, tokens=flat), focus_bytes(job, rows=plan.rows))
    running = max(costs.forward_bytes(prompt), costs.forward_bytes(flat) + flat * costs.keys_values)
    return {
        "image features": feature_bytes(job, job.kept_prompts),
        "prompt keys and values": prompt * costs.keys_values * model.layers,
        # Beside states and logits: the prompt's embeddings, and the queries and keys that focus is read from.
        "activations": flat * (costs.input + size * (model.query + model.key))
        + prompt * costs.input
        + max(running - after, 0),
        "logits and focus": after,
        "masks": mask_bytes(job, prompt=prompt, flat=flat),
    }


def update_parts(job: Job) -> dict[str, int]:
    """Forward and backward over one micro-batch on top of its prompt, or at last over the prompt."""
    costs, layers, plan = costs_of(job), job.model.layers, job.update_plan
    prompt, flat = _lengths(job, plan)
    divided = plan.rows < job.config.num_generations
    matrices = adapter_matrices(adapted_linears(job.model, vision=job.config.lora.vision), rank=job.config.lora.r)
    fixed = {
        "gradients": FLOAT * sum(matrices),
        "image features": feature_bytes(job, job.kept_prompts),
        # Their gradients gather in leaves: from the first micro-batch on, or layer by layer in the one backward pass.
        "prompt keys and values": (2 if divided else 1) * prompt * costs.keys_values * layers,
        "masks": mask_bytes(job, prompt=prompt, flat=flat),
    }
    waiting = _graph_bytes(costs, prompt, layers - 1, plan.kept_prompt_layers - 1) + prompt * costs.kept_to_keys
    graph = _graph_bytes(costs, flat, layers, plan.kept_layers) + flat * (2 * costs.input + FLOAT * job.model.hidden)
    graph -= flat * costs.kept  # the last layer's, which its backward pass counts
    focus = 0 if divided else focus_bytes(job, rows=plan.rows)
    ending = max(logit_bytes(job, tokens=flat) + flat * costs.kept, focus + flat * costs.kept)
    moments = [
        {"activations": waiting + graph + flat * costs.kept, "logits and focus": ending - flat * costs.kept},
        {"activations": waiting + graph + costs.backward_bytes(flat)},
        {
            "prompt keys and values": 2 * prompt * costs.keys_values * layers,
            "activations": waiting - prompt * costs.kept_to_keys + costs.backward_bytes(prompt),
        },
    ]
    if job.config.engine == "batched":
        moments = moments[:2]
    return max((fixed | moment for moment in moments), key=lambda parts: sum(parts.values()))


def optimizer_parts(job: Job) -> dict[str, int]:
    """Clipping and moving the adapters; plain AdamW on a GPU computes all of them at once, with as much again."""
    matrices = adapter_matrices(adapted_linears(job.model, vision=job.config.lora.vision), rank=job.config.lora.r)
    together = FLOAT * sum(matrices) if job.device == "cuda" and not job.uses_8bit_optimizer else 0
    return {"gradients": FLOAT * sum(matrices), "activations": together}


def _lengths(job: Job, plan: UpdatePlan) -> tuple[int, int]:
    """Tokens of the prompt that are run once, and those of a micro-batch; copies of the prompt count as its own."""
    length = job.config.max_completion_length
    if job.config.engine == "batched":
        return 0, plan.rows * (job.prompt.tokens + length)
    return job.prompt.tokens - 1, plan.rows * length


def _graph_bytes(costs: LayerCosts, tokens: int, layers: int, kept_layers: int) -> int:
    """What layers keep of tokens: their inputs, or everything."""
    return tokens * ((layers - kept_layers) * costs.input + kept_layers * costs.kept)
