"""The paper's mathematics: pure functions of tensors and numbers, in the order of the paper.

`focus` reads how much each token looks at the image (Eq. 3-4), `weighting` turns that into weights (Eq. 5-11) and
`released` does it as the authors' program does. `weigh` joins them with the group-relative `advantages`, and
`objective` sums the terms of `surrogate` over the tokens. Rows are the completions of one prompt, the last axis is the
token, and a mask is True where a token was sampled; what lies under the padding is never read, so it may be nan.
Nothing here sees a configuration or a model.

Source: "Visually-Guided Policy Optimization for Multimodal Reasoning", arXiv 2604.09349.
"""
