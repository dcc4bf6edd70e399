"""What is shown of a completion is what the method reads of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.engine.work import batched, plain_inputs
from tests.small_models import MODEL_TYPES, make_group, make_prompt, seen_by, small_policy
from vgpo_lite.algorithm.focus import attention_focus
from vgpo_lite.algorithm.maps import attention_maps
from vgpo_lite.config.load import load_config
from vgpo_lite.data_types import GroupRewards, Sample
from vgpo_lite.engine import make_engine
from vgpo_lite.engine.hiding import image_reliance
from vgpo_lite.engine.maps import group_attention_maps
from vgpo_lite.microscope import inspect_prompts
from vgpo_lite.microscope.looking import focus_layer, hidden_from, on_cells, token_texts
from vgpo_lite.models import load_policy
from vgpo_lite.prompts import Grid, encode_prompt
from vgpo_lite.prompts.grids import joined_grid, squared_grid


def test_one_token_worked_by_hand() -> None:
    # One head of one dimension. The second query is 1; prompt keys 0 and ln 2, own key 0: weights 1, 2, 1 of 4.
    query = torch.tensor([[[0.0], [1.0]]])
    on_prompt, on_itself = attention_maps(
        query, torch.tensor([[[0.0], [2.0]]]).log().nan_to_num(neginf=0.0), torch.zeros(1, 2, 1), scale=1.0
    )
    torch.testing.assert_close(on_prompt, torch.tensor([[0.5, 0.5], [0.25, 0.5]]))
    torch.testing.assert_close(on_itself, torch.tensor([0.0, 0.25]))


@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_the_map_over_the_image_adds_up_to_focus(chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, prompt, own = (torch.randn(size, generator=generator) for size in ((4, 5, 8), (2, 7, 8), (2, 5, 8)))
    image = torch.tensor([False, True, True, False, True, False, False])
    on_prompt, on_itself = attention_maps(query, prompt, own, scale=0.3, chunk_size=chunk)
    focus = attention_focus(query[None], prompt, own[None], image, scale=0.3, chunk_size=3)[0]
    torch.testing.assert_close(on_prompt[:, image].sum(dim=-1), focus)
    torch.testing.assert_close(on_prompt.sum(dim=-1) + on_itself, torch.ones(5))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_maps_are_the_models_own_eager_attention(model_type: str) -> None:
    policy = small_policy(model_type)
    group = make_group(seen_by(model_type, make_prompt(((2, 3), (1, 2)), text=(3, 2, 4))), (5, 2))
    batched(policy)  # prepares the model
    maps = group_attention_maps(policy, group)
    bare, first = policy.family.bare(policy.model), group.prompt.input_ids.shape[0]
    bare.set_attn_implementation({"text_config": "eager"})
    policy.model.eval()
    for row, seen in enumerate(maps):
        bare.model.rope_deltas = None
        with torch.no_grad():
            attentions = bare(**plain_inputs(policy, group, row), output_attentions=True, use_cache=False).attentions
        expected = attentions[policy.family.capture_layer(policy.model)][0].mean(dim=0)[first - 1 : -1]
        torch.testing.assert_close(seen.on_prompt, expected[:, :first], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(seen.on_itself, expected[:, first:].sum(dim=-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("model_type", "layer"), [("qwen2_vl", "layer 3 of 3"), ("gemma3", "layer 2 of 3")])
def test_the_layer_of_the_maps_is_named(model_type: str, layer: str) -> None:
    assert focus_layer(small_policy(model_type)) == layer  # Gemma's last one sees a window


def test_attention_on_tiles_is_drawn_where_they_are() -> None:
    # Two tiles of one token side by side, and the whole image over both; then an image of one token.
    grids = [Grid(1, 2, ((0, 1, 0, 1), (0, 1, 1, 2), (0, 1, 0, 2))), Grid(1, 1, ((0, 1, 0, 1),))]
    maps = np.array([[0.1, 0.2, 0.4, 0.05], [0.0, 0.0, 0.2, 0.3]])
    np.testing.assert_allclose(on_cells(maps, grids), [[0.3, 0.4, 0.05], [0.1, 0.1, 0.3]])


def test_attention_on_a_token_that_shows_nothing_lights_up_nothing() -> None:
    # One row of two cells: the whole image in one token, a token a cell, and one that ends the row with most of all.
    grid = joined_grid(1, 2, 1)
    np.testing.assert_allclose(on_cells(np.array([[0.2, 0.1, 0.0, 0.6]]), [grid]), [[0.2, 0.1]])
    # An image of 1 x 2 in the middle of a square of 2 x 2: its tokens lie in both rows, and the last one shows nothing.
    drawn = on_cells(np.array([[0.1, 0.2, 0.3, 0.1, 0.3]]), [squared_grid((10, 20), 2)])
    np.testing.assert_allclose(drawn, [[0.1, 0.2, 0.3, 0.1]])
    # Thrice as wide as high: the first and the last row of the square are beside it.
    drawn = on_cells(np.array([[0.9] * 3 + [0.1, 0.2, 0.3] + [0.9] * 4]), [squared_grid((10, 30), 3)])
    np.testing.assert_allclose(drawn, [[0.1, 0.2, 0.3]])


def test_before_and_after_show_what_the_method_reads() -> None:
    config = load_config(
        model="tiny", dataset="shapes", quantization="none", num_generations=2, max_completion_length=20
    )
    policy = load_policy(config)
    with torch.no_grad():
        for name, weight in policy.adapters().items():
            if "lora_B" in name:
                weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    engine = make_engine(policy, config)
    sample = Sample(
        sample_id="by/hand",
        question="<image>How many red circles are there?",
        images=(Image.effect_noise((112, 112), 50).convert("RGB"),),
        answer="1",
    )
    prompt = encode_prompt(sample, policy.processor, config.data)
    verdicts = torch.tensor([1.0, 0.0])
    rewards = GroupRewards(rewards=0.9 * verdicts, components={"accuracy": verdicts})
    [seen] = inspect_prompts(policy, engine, [prompt], config, grade=lambda group: rewards, compare=True, causal=True)
    assert list(seen.groups) == ["before", "after"]
    assert [(image.rows, image.columns) for image in seen.images] == [(4, 4)]
    right, wrong = seen.groups["after"]
    assert (right.reward, wrong.reward) == (pytest.approx(0.9), 0.0)
    assert (right.is_right, wrong.is_right) == (True, False)  # by accuracy, whatever else is taken off a reward
    for each in (right, wrong):
        torch.testing.assert_close(each.on_image, each.focus, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(each.on_image + each.on_question + each.on_itself, torch.ones(len(each.tokens)))
        torch.testing.assert_close(each.psi.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
        assert each.maps.shape == (len(each.tokens), 16)
    torch.testing.assert_close(
        right.advantage, (1 + right.psi) * (1 + right.phi) * right.advantage.new_tensor(0.7069961)
    )
    assert right.phi == pytest.approx(-wrong.phi)
    # By the defaults the gate opens for the top fifth of the second half, rounded down.
    first = len(right.tokens) // 2
    assert right.gate[:first].sum() == 0
    assert right.gate.sum() == (len(right.tokens) - first) // 5
    assert right.gate[first + int(right.focus[first:].argmax())] == 1
    assert not torch.equal(seen.groups["before"][0].on_image[:1], right.on_image[:1])
    first = engine.sample([prompt], config.sampling, places=[0], on_step=None)[0]
    with policy.reference():
        group = engine.sample([prompt], config.sampling, places=[0], on_step=None)[0]
        without = image_reliance(policy, group, temperature=config.temperature)
    for name in ("painted_over", "hidden_late", "entropy"):
        kept = getattr(without, name)[1][group.completion_mask[1]]
        torch.testing.assert_close(seen.groups["before"][1].reliance[name], kept)
        assert float(kept.abs().max()) > 0
    assert hidden_from(policy) == "the last of 4 layers"
    assert "".join(right.tokens).replace("<|im_end|>", "").replace("<|endoftext|>", "") == first.texts[0]


def test_a_character_of_several_tokens_is_shown_with_its_last() -> None:
    policy = load_policy(load_config(model="tiny", dataset="shapes", quantization="none"))
    ids = policy.processor.tokenizer.encode("né ✓", add_special_tokens=False)
    texts = token_texts(policy, ids)
    assert "".join(texts) == "né ✓"
    assert "\ufffd" not in "".join(texts)
    assert texts[-1] == "✓"
    assert len(ids) == len(texts) == 7  # n, two bytes, a space, three bytes
