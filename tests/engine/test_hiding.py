"""What is taken away is taken away exactly: against the model's own eager attention, with a mask in some layers."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

from tests.engine.work import LOGPROBS, plain_inputs, plain_logprobs
from tests.small_models import MODEL_TYPES, make_group, make_prompt, seen_by, small_policy
from vgpo_lite.algorithm.ranks import mean_ranks, rank_correlation
from vgpo_lite.config.load import load_config
from vgpo_lite.data_types import Sample
from vgpo_lite.engine.hiding import Reliance, image_reliance, late_layers
from vgpo_lite.engine.logprobs import token_entropies
from vgpo_lite.errors import ModelError
from vgpo_lite.models import load_policy
from vgpo_lite.models.attention import use_shared_attention
from vgpo_lite.prompts import encode_prompt

if TYPE_CHECKING:
    from torch import Tensor

    from vgpo_lite.data_types import RolloutGroup
    from vgpo_lite.models.policy import Policy

TWO_IMAGES = make_prompt([(2, 3), (4, 2)], seed=1)
RAGGED = (5, 9, 1, 7)


def ready(model_type: str, **options) -> Policy:
    policy = small_policy(model_type, **options)
    use_shared_attention(policy.family.bare(policy.model))
    return policy


@torch.no_grad()
def plain(policy: Policy, group: RolloutGroup, *, hidden: int = 0) -> Tensor:
    """Log-probabilities by the model's own eager attention, whose mask hides the image in the last layers."""
    bare, first = policy.family.bare(policy.model), group.prompt.input_ids.shape[0]

    def hide(module, arguments, keywords):
        mask = keywords["attention_mask"].clone()
        places = torch.nn.functional.pad(group.prompt.image_mask, (0, mask.shape[-1] - first))
        mask[:, :, first - 1 :, places] = torch.finfo(mask.dtype).min
        return arguments, {**keywords, "attention_mask": mask}

    bare.set_attn_implementation({"text_config": "eager"})
    policy.model.eval()
    with ExitStack() as hooks:
        layers = policy.family.layers(policy.model)
        for layer in layers[len(layers) - hidden :]:
            hook = layer.get_submodule("self_attn").register_forward_pre_hook(hide, with_kwargs=True)
            hooks.callback(hook.remove)
        logprobs = plain_logprobs(policy, group)
    policy.model.train()
    use_shared_attention(bare)
    return logprobs


def mean_coloured(group: RolloutGroup) -> RolloutGroup:
    """By a loop over images, channels and patches, or tiles of one token."""
    if "image_grid_thw" not in group.prompt.vision:
        return mean_coloured_tiles(group)
    pixels, start = group.prompt.vision["pixel_values"].clone(), 0
    size = pixels.shape[1] // 3
    for grid in group.prompt.vision["image_grid_thw"].tolist():
        stop = start + grid[0] * grid[1] * grid[2]
        for channel in range(3):
            part = pixels[start:stop, channel * size : (channel + 1) * size]
            part[:] = sum(part.flatten().tolist()) / part.numel()
        start = stop
    assert start == len(pixels)
    prompt = replace(group.prompt, vision={**group.prompt.vision, "pixel_values": pixels})
    return replace(group, prompt=prompt)


def mean_coloured_tiles(group: RolloutGroup) -> RolloutGroup:
    prompt, start = group.prompt, 0
    pixels = prompt.vision["pixel_values"].clone()
    tiles = pixels.flatten(0, -4)  # one for each image of Gemma 3, and for each of several of LLaVA-OneVision
    for length in (1, 1) if len(tiles) == 2 else (6, 8):
        for channel in range(3):
            part = tiles[start : start + length, channel]
            part[:] = sum(part.flatten().tolist()) / part.numel()
        start += length
    return replace(group, prompt=replace(prompt, vision={**prompt.vision, "pixel_values": pixels}))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_both_measures_are_those_of_eager_attention_with_a_mask(model_type: str) -> None:
    policy, group = ready(model_type), make_group(seen_by(model_type, TWO_IMAGES), RAGGED)
    shown, painted = plain(policy, group), plain(policy, mean_coloured(group))
    for hidden in (1, 2):
        found = image_reliance(policy, group, hidden_layers=hidden)
        late = shown - plain(policy, group, hidden=hidden)
        torch.testing.assert_close(found.hidden_late, late, rtol=0, atol=4 * LOGPROBS)
        reach = policy.family.windows(policy.model)[-hidden:]
        assert (float(late.abs().max()) > 0.1) == (None in reach)  # a window behind the image shows none of it
    torch.testing.assert_close(found.painted_over, shown - painted, rtol=0, atol=4 * LOGPROBS)
    assert float(found.painted_over.abs().max()) > 0.1


def test_a_quarter_of_the_layers_is_late_and_the_temperature_counts() -> None:
    policy, group = ready("qwen3_vl", layers=5), make_group(TWO_IMAGES, (4, 6))
    assert late_layers(policy) == 2
    found, warm = image_reliance(policy, group), image_reliance(policy, group, temperature=2.0)
    torch.testing.assert_close(found.hidden_late, image_reliance(policy, group, hidden_layers=2).hidden_late)
    assert not torch.allclose(found.painted_over, warm.painted_over, atol=1e-2)
    assert bool((warm.entropy >= found.entropy).all())


def test_hiding_the_image_from_no_layer_changes_nothing() -> None:
    policy, group = ready("qwen2_vl"), make_group(TWO_IMAGES, RAGGED)
    assert image_reliance(policy, group, hidden_layers=0).hidden_late.count_nonzero() == 0


@torch.no_grad()
def test_what_the_last_layers_do_not_read_is_not_missed_there() -> None:
    policy, group = ready("qwen2_5_vl"), make_group(TWO_IMAGES, RAGGED)
    for name, weight in policy.family.layers(policy.model)[-1].named_parameters():
        if "self_attn.o_proj" in name:
            weight.zero_()
    found = image_reliance(policy, group, hidden_layers=1)
    assert found.hidden_late.count_nonzero() == 0
    assert float(found.painted_over.abs().max()) > 0.1
    assert float(image_reliance(policy, group, hidden_layers=2).hidden_late.abs().max()) > 0.01


@torch.no_grad()
def test_a_model_that_cannot_see_misses_no_image() -> None:
    policy, group = ready("qwen2_vl"), make_group(TWO_IMAGES, RAGGED)
    for weight in policy.family.vision_tower(policy.model).get_submodule("merger").parameters():
        weight.zero_()
    assert image_reliance(policy, group).painted_over.count_nonzero() == 0


def test_neighbours_and_padding_do_not_matter() -> None:
    policy, group = ready("qwen3_vl"), make_group(TWO_IMAGES, RAGGED)
    together = image_reliance(policy, group)
    wider = replace(
        group,
        completion_ids=torch.nn.functional.pad(group.completion_ids, (0, 3), value=7),
        completion_mask=torch.nn.functional.pad(group.completion_mask, (0, 3)),
    )
    for row, length in enumerate(RAGGED):
        lone = replace(
            group,
            completion_ids=group.completion_ids[row : row + 1, :length],
            completion_mask=group.completion_mask[row : row + 1, :length],
            texts=("",),
        )
        alone, padded = image_reliance(policy, lone), image_reliance(policy, wider)
        for name in Reliance.__dataclass_fields__:
            values = getattr(together, name)
            torch.testing.assert_close(getattr(alone, name)[0], values[row, :length], rtol=0, atol=LOGPROBS)
            assert torch.equal(torch.nn.functional.pad(values, (0, 3)), getattr(padded, name))
            assert values[row, length:].count_nonzero() == 0


def test_entropy_is_that_of_the_models_own_logits() -> None:
    policy, group = ready("qwen2_vl"), make_group(TWO_IMAGES, (6,))
    found = image_reliance(policy, group, temperature=0.7).entropy[0]
    policy.model.eval()
    with torch.no_grad():
        logits = policy.model(**plain_inputs(policy, group, 0), use_cache=False).logits[0, -7:-1].double() / 0.7
    p = logits.softmax(dim=-1)
    torch.testing.assert_close(found.double(), -(p * p.log()).sum(dim=-1), rtol=0, atol=1e-5)
    states, head = torch.randn(5, 4), torch.randn(9, 4)
    torch.testing.assert_close(token_entropies(states, head, chunk_size=2), token_entropies(states, head))


def test_what_cannot_be_taken_away_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, group = ready("qwen2_vl"), make_group(TWO_IMAGES, (3,))
    with pytest.raises(ValueError, match="hand/0 shows no image"):
        image_reliance(policy, make_group(make_prompt([]), (3,)))
    with pytest.raises(ValueError, match="hidden_layers is 4; expected 0 to 3"):
        image_reliance(policy, group, hidden_layers=4)
    monkeypatch.setattr(type(policy.family), "shares_prompts", lambda self, model: False)
    with pytest.raises(ModelError, match="layers that see neither everything nor a window"):
        image_reliance(policy, group)


def test_painted_over_is_what_the_processor_makes_of_the_mean_colour() -> None:
    config = load_config(model="tiny", dataset="shapes", quantization="none")
    policy = load_policy(config)
    picture = Image.new("RGB", (112, 56), (200, 40, 80))
    picture.paste((100, 140, 0), (0, 0, 28, 56))  # a quarter of it: the mean is (175, 65, 60)
    noise = Image.effect_noise((56, 56), 60).convert("RGB")

    def prompt_of(*images: Image.Image):
        sample = Sample(sample_id="by/hand", question="<image><image>How many?", images=images, answer="1")
        return encode_prompt(sample, policy.processor, config.data)

    painted = policy.family.painted_over(prompt_of(picture, noise))
    expected = prompt_of(Image.new("RGB", (112, 56), (175, 65, 60)), noise)
    first = expected.vision["image_grid_thw"][0].prod()
    torch.testing.assert_close(
        painted.vision["pixel_values"][:first], expected.vision["pixel_values"][:first], rtol=0, atol=1e-4
    )
    second = painted.vision["pixel_values"][first:]
    assert float(second.unflatten(1, (3, -1)).std(dim=(0, 2)).max()) < 1e-5
    torch.testing.assert_close(second.mean(), expected.vision["pixel_values"][first:].mean())
    assert torch.equal(painted.input_ids, expected.input_ids)


def test_ranks_and_their_correlation_worked_by_hand() -> None:
    # 5 and 5 share places 2 and 3. Ranks (1, 2.5, 2.5, 4) against (2, 1, 3, 4), both of mean 2.5: deviations
    # (-1.5, 0, 0, 1.5) and (-0.5, -1.5, 0.5, 1.5), product 0.75 + 2.25 = 3, norms sqrt(4.5) and sqrt(5).
    left, right = torch.tensor([1.0, 5.0, 5.0, 9.0]), torch.tensor([0.2, 0.1, 3.0, 4.0])
    assert mean_ranks(left).tolist() == [1.0, 2.5, 2.5, 4.0]
    assert float(rank_correlation(left, right)) == pytest.approx(3 / (4.5 * 5) ** 0.5)
    assert float(rank_correlation(-left, right.exp())) == pytest.approx(-3 / (4.5 * 5) ** 0.5)
    assert bool(rank_correlation(torch.ones(3), right[:3]).isnan())
    assert bool(rank_correlation(left[:1], right[:1]).isnan())
