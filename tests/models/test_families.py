"""What the engine is told of each family is true of the real architecture."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.quantizers.quantizers_utils import should_convert_module

from tests.small_models import (
    EOS,
    IMAGE_PAD,
    MODEL_TYPES,
    QWEN_TYPES,
    VIDEO_PAD,
    VISION_END,
    VISION_START,
    WINDOW,
    make_prompt,
    seen_by,
    small_model,
    with_adapters,
)
from vgpo_lite.errors import ModelError
from vgpo_lite.models.families import family_of

PROMPT = make_prompt([(2, 3), (4, 2)], seed=1)


@pytest.fixture(params=MODEL_TYPES)
def model(request):
    return small_model(request.param)


@pytest.fixture
def family(model):
    return family_of(model.config)


@pytest.fixture
def prompt(family):
    return seen_by(family.model_type, PROMPT)


def test_a_foreign_model_is_refused_with_the_families_that_are_known():
    with pytest.raises(
        ModelError, match=r"'llava'.*gemma3, internvl, llava_onevision, qwen2_5_vl, qwen2_vl, qwen3_vl, smolvlm"
    ):
        family_of(SimpleNamespace(model_type="llava"))


def test_only_the_language_models_projections_are_quantized(model, family):
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    chosen = {name for name in names if should_convert_module(name, family.skip_quantization())}
    assert chosen == {name for name in names if name.startswith(f"model.{family.decoder}.layers.")}
    assert len(chosen) == 3 * 7


@pytest.mark.parametrize("vision", [False, True])
def test_adapters_sit_where_they_should(model, family, vision):
    depth = len(family.vision_layers(model))
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    wrapped = with_adapters(model, vision=vision)
    prefix = "base_model.model."
    chosen = {
        name.removeprefix(prefix).removesuffix(".base_layer")
        for name, module in wrapped.named_modules()
        if name.endswith(".base_layer")
    }
    language = {name for name in linears if name.startswith(f"model.{family.decoder}.layers.")}
    tower = {name for name in linears if name.startswith(f"model.{family.tower}.{family.blocks}.")}
    assert len(tower) >= 4 * depth
    assert chosen == (language | tower if vision else language)
    assert family.trains_vision(wrapped) == vision


def test_parts_are_found_bare_and_wrapped(model, family):
    parts = (
        family.bare,
        family.language_model,
        family.vision_tower,
        family.lm_head,
        family.final_norm,
        family.layers,
        family.vision_layers,
    )
    before = [part(model) for part in parts]
    wrapped = with_adapters(model)
    assert all(part(wrapped) is old or part(wrapped) == old for part, old in zip(parts, before, strict=True))
    assert family.bare(model) is model
    windows = (WINDOW, None, WINDOW) if family.model_type == "gemma3" else (None, None, None)
    assert family.windows(model) == windows
    assert family.capture_layer(model) == max(layer for layer, window in enumerate(windows) if window is None)
    assert family.shares_prompts(model)
    assert len(family.layers(model)) == 3


@torch.no_grad()
def test_the_prompts_inputs_give_the_models_own_states_through_its_language_model(model, family, prompt):
    kinds = {"mm_token_type_ids": prompt.image_mask[None].int()} if family.model_type in QWEN_TYPES else {}
    expected = model(input_ids=prompt.input_ids[None], **kinds, **prompt.vision).logits
    model.model.rope_deltas = torch.tensor([[-50]])
    inputs = family.prompt_inputs(model, prompt, family.encode_images(model, prompt))
    states = family.language_model(model)(
        inputs_embeds=inputs.inputs_embeds, position_ids=inputs.position_ids, **inputs.extras(inputs.length)
    ).last_hidden_state
    torch.testing.assert_close(family.lm_head(model)(states), expected)


@pytest.mark.parametrize("model_type", QWEN_TYPES)
def test_positions_go_on_where_the_prompt_ends(model_type):
    model = small_model(model_type)
    family = family_of(model.config)
    # 4 text, start, 2 x 3 image (3 wide), end, 5 text, start, 4 x 2 image (4 high), end, 6 text
    inputs = family.prompt_inputs(model, PROMPT, family.encode_images(model, PROMPT))
    assert inputs.next_position == 4 + 1 + 3 + 1 + 5 + 1 + 4 + 1 + 6
    assert inputs.length == PROMPT.input_ids.shape[0] == 4 + 1 + 6 + 1 + 5 + 1 + 8 + 1 + 6
    assert inputs.position_ids.shape == (3, 1, inputs.length)
    assert inputs.row_positions(2, rows=4)[:, 3, -2:].tolist() == [[26, 27]] * 3
    assert family.text_positions(torch.tensor([[7], [8]])).tolist() == [[[7], [8]]] * 3


def test_tokens_of_tiles_stand_one_behind_the_other():
    model = small_model("smolvlm")
    family, prompt = family_of(model.config), seen_by("smolvlm", PROMPT)
    inputs = family.prompt_inputs(model, prompt, None)
    assert inputs.position_ids.tolist() == [list(range(33))]
    assert inputs.row_positions(2, rows=3).tolist() == [list(range(35))] * 3
    assert family.text_positions(torch.tensor([[7], [8]])).tolist() == [[7], [8]]


@torch.no_grad()
def test_of_joined_tiles_the_first_gives_the_colour_and_all_are_painted():
    family, prompt = family_of(small_model("llava_onevision").config), seen_by("llava_onevision", make_prompt([(3, 3)]))
    pixels = prompt.vision["pixel_values"]
    pixels[0, 1:] = -1.0  # what a canvas is filled up with is no colour of the image
    painted = family.painted_over(prompt).vision["pixel_values"]
    assert painted.shape == pixels.shape
    assert pixels.shape[1] > 1
    for channel in range(3):
        colour = sum(pixels[0, 0, channel].flatten().tolist()) / pixels[0, 0, channel].numel()
        torch.testing.assert_close(painted[0, :, channel], torch.full_like(pixels[0, :, channel], colour))


def test_image_tokens_are_those_of_the_mask_whatever_the_ids_are(model, family, prompt):
    features = family.encode_images(model, prompt)
    inputs = family.prompt_inputs(model, prompt, features)
    renamed = replace(prompt, input_ids=prompt.input_ids.masked_fill(prompt.image_mask, 3))
    assert torch.equal(family.prompt_inputs(model, renamed, features).inputs_embeds, inputs.inputs_embeds)
    text = make_prompt([], text=(5,))
    fake = replace(text, input_ids=torch.tensor([1, IMAGE_PAD, VISION_START, VIDEO_PAD, 2]))
    assert family.encode_images(model, fake) is None
    plain = family.prompt_inputs(model, fake, None)
    assert torch.equal(plain.inputs_embeds[0], family.embed(model, fake.input_ids))
    assert plain.next_position == 5
    assert plain.extras(9) == {}


def test_features_that_do_not_match_the_prompt_are_refused_by_name(model, family, prompt):
    made, kept = int(prompt.image_mask.sum()), len(prompt.input_ids) - 8  # the text behind, the end, and one token
    left = int(prompt.image_mask[:kept].sum())
    short = replace(prompt, input_ids=prompt.input_ids[:kept], image_mask=prompt.image_mask[:kept])
    assert left < made
    with pytest.raises(ModelError, match=rf"hand/1.*{made} features.*{left} image tokens"):
        family.encode_images(model, short)


def test_a_frozen_tower_leaves_no_graph_and_one_with_adapters_does(model, family, prompt):
    wrapped = with_adapters(model)
    assert not family.encode_images(wrapped, prompt).image_embeds.requires_grad
    learning = with_adapters(small_model(family.model_type), vision=True)
    features = family.encode_images(learning, prompt)
    assert features.image_embeds.requires_grad
    assert all(extra.requires_grad for extra in features.deepstack)
    with torch.no_grad():
        assert not family.encode_images(learning, prompt).image_embeds.requires_grad


def test_only_qwen3_feeds_early_layers_and_never_behind_the_prompt():
    for model_type, layers in (("qwen2_vl", 0), ("qwen2_5_vl", 0), ("qwen3_vl", 2)):
        model = small_model(model_type)
        family = family_of(model.config)
        features = family.encode_images(model, PROMPT)
        assert len(features.deepstack) == layers
        extras = family.prompt_inputs(model, PROMPT, features).extras(40, rows=2)
        if layers:
            assert extras["visual_pos_masks"].shape == (2, 40)
            assert torch.equal(extras["visual_pos_masks"][1, :32], PROMPT.image_mask[:32])
            assert not extras["visual_pos_masks"][:, PROMPT.image_mask.shape[0] :].any()
            assert extras["deepstack_visual_embeds"][0].shape == (2 * 14, 64)


class _Tokenizer:
    def __init__(self, added):
        self._added = added

    def get_added_vocab(self):
        return self._added | {"<think>": 7, "<|im_end|>": EOS}


VISION_WORDS = {
    "gemma3": ("<image_soft_token>", "<start_of_image>", "<end_of_image>"),
    "internvl": ("<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
    "llava_onevision": ("<image>", "<video>"),
    "smolvlm": ("<image>", "<video>", "<fake_token_around_image>", "<global-img>", "<row_1_col_12>"),
}


def test_vision_ids_come_from_the_configuration_and_the_tokenizer(model, family):
    named = (IMAGE_PAD, VIDEO_PAD) if family.model_type == "llava_onevision" else (IMAGE_PAD,)
    words = VISION_WORDS.get(family.model_type)
    if words is None:
        named = (VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)
        words = ("<|vision_pad|>", "<|image_pad|>")
    elif family.model_type == "gemma3":
        named = (VISION_START, VISION_END, IMAGE_PAD)
    assert family.vision_special_ids(model.config, None) == tuple(sorted(named))
    added = {word: 40 + place for place, word in enumerate(words)}
    assert family.vision_special_ids(model.config, _Tokenizer(added)) == tuple(sorted((*named, *added.values())))
