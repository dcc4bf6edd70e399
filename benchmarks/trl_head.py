"""TRL 1.15's fused head without Triton: its trainer has no other, and Triton needs a GPU.

The same work in torch: logits of some tokens at a time, log-probability and entropy from them, and a backward pass that
computes the logits again. No gradient reaches the head, which is frozen.
"""

from __future__ import annotations

import torch

TOKENS = 256
"""Tokens whose logits exist at one time. TRL's own 4,096 would only take more memory here."""


class ChunkedHead(torch.autograd.Function):
    """In the place of `trl.kernels.ChunkedLogProbFunction`: the arguments and results are its."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, temperature, chunk_size, softcap, logit_scale, outputs):
        logprobs, entropy, log_sums = (hidden.new_empty(hidden.shape[0], dtype=torch.float32) for _ in range(3))
        for start in range(0, hidden.shape[0], TOKENS):
            part = slice(start, start + TOKENS)
            scores = (hidden[part] @ weight.T).float().div_(temperature)
            log_sums[part] = scores.logsumexp(dim=-1)
            logprobs[part] = scores.gather(1, targets[part, None]).squeeze(1) - log_sums[part]
            weights = (scores - log_sums[part, None]).exp_()
            entropy[part] = log_sums[part] - weights.mul_(scores).sum(dim=-1)
        ctx.save_for_backward(hidden, weight, targets, log_sums)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logprobs, entropy, None, None, None

    @staticmethod
    def backward(ctx, gradient, *_others):
        hidden, weight, targets, log_sums = ctx.saved_tensors
        gradients = torch.empty_like(hidden)
        for start in range(0, hidden.shape[0], TOKENS):
            part = slice(start, start + TOKENS)
            against = (hidden[part] @ weight.T).float().div_(ctx.temperature).sub_(log_sums[part, None]).exp_().neg_()
            against.scatter_add_(1, targets[part, None], torch.ones_like(targets[part, None], dtype=against.dtype))
            against.mul_(gradient[part, None] / ctx.temperature)
            gradients[part] = against.to(weight.dtype) @ weight
        return gradients, None, None, None, None, None, None, None, None
