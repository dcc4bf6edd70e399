"""Both weightings against reference numbers that were computed elsewhere, float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.algorithm.groups import assert_close
from tests.tolerances import FLOAT64, ORACLE
from vgpo_lite.algorithm.focus import similarity_focus
from vgpo_lite.algorithm.masked import min_max_scale
from vgpo_lite.algorithm.released import released_compensate, released_token_weights, released_trajectory_weights
from vgpo_lite.algorithm.weigh import Weighting, weigh
from vgpo_lite.algorithm.weighting import compensate, reweight, token_weights, trajectory_weights

CASES = json.loads(Path(__file__).with_name("vgpo_vectors.json").read_text())
GROUPS = [
    pytest.param(case, slice(first, first + case["params"]["group_size"]), id=f"case{number}-row{first}")
    for number, case in enumerate(CASES)
    for first in range(0, len(case["advantages"]), case["params"]["group_size"])
]


def tensor(values: list, rows: slice) -> torch.Tensor:
    return torch.tensor(values[rows], dtype=torch.float64)


def options(case: dict) -> dict:
    return {name: case["params"][name] for name in ("beta", "gamma", "kappa", "schedule")}


def focus_of(case: dict, rows: slice) -> torch.Tensor:
    """The paper's focus from the case's hidden states; the image stands at the same places of every row's prompt."""
    prompt = case["params"]["prompt_length"]
    hidden = tensor(case["hidden_states"], rows)
    is_image = torch.tensor(case["input_ids"][rows])[:, :prompt] == case["params"]["image_token_id"]
    return torch.cat(
        [similarity_focus(row[None, prompt:], row[:prompt][image]) for row, image in zip(hidden, is_image, strict=True)]
    )


@pytest.mark.parametrize(("case", "rows"), GROUPS)
def test_the_paper_s_equations_equal_the_reference_numbers(case, rows):
    expected = {name: tensor(values, rows) for name, values in case["expected_paper"].items()}
    mask = torch.tensor(case["completion_mask"][rows]).bool()
    advantages = tensor(case["advantages"], rows)
    focus = torch.where(mask, focus_of(case, rows), torch.nan)
    w = compensate(focus, mask, **options(case))
    psi, phi = token_weights(w, mask), trajectory_weights(w, mask)
    assert_close(focus[mask], expected["focus"][mask], ORACLE)
    assert torch.equal((w > torch.where(mask, focus, 0)).double(), expected["gate"])
    assert_close(w, expected["compensated"], ORACLE)
    assert_close(psi, expected["token_weights"], ORACLE)
    assert_close(phi, expected["trajectory_weights"], ORACLE)
    assert_close(reweight(advantages, psi, phi)[mask], expected["reweighted_advantages"][mask], ORACLE)
    weighed = weigh(advantages, focus, mask, weighting=Weighting(**options(case)))
    assert_close(weighed, torch.where(mask, expected["reweighted_advantages"], 0), ORACLE)


@pytest.mark.parametrize(("case", "rows"), GROUPS)
def test_the_released_weighting_equals_what_the_released_program_computes(case, rows):
    reference = {name: values for name, values in case["expected_released"].items() if isinstance(values, list)}
    expected = {name: tensor(values, rows) for name, values in reference.items()}
    mask = torch.tensor(case["completion_mask"][rows]).bool()
    advantages = tensor(case["advantages"], rows)
    focus = torch.where(mask, expected["focus_released"], torch.nan)
    w = released_compensate(focus, mask, **options(case))
    psi, phi = released_token_weights(w, mask), released_trajectory_weights(w, mask)
    assert_close(w, expected["compensated"], ORACLE)
    assert_close(min_max_scale(w, mask), expected["normalized"], ORACLE)
    assert_close(1 + psi, expected["token_factor"], ORACLE)
    assert_close(1 + phi, expected["trajectory_factor"], ORACLE)
    weighed = weigh(advantages, focus, mask, weighting=Weighting(weighting="released", **options(case)))
    assert_close(weighed, expected["reweighted_advantages"], ORACLE)


def test_the_reference_numbers_tell_the_two_weightings_apart():
    for parameter in GROUPS:
        case, rows = parameter.values
        paper, released = (
            tensor(case[key]["reweighted_advantages"], rows) for key in ("expected_paper", "expected_released")
        )
        assert (paper - released).abs().max() > 1e4 * ORACLE


def test_neighbours_in_the_batch_change_nothing():
    case = CASES[2]
    assert case["params"]["group_size"] < len(case["advantages"])
    rows = slice(0, len(case["advantages"]))
    mask, focus = torch.tensor(case["completion_mask"]).bool(), focus_of(case, rows)
    together = compensate(focus, mask, **options(case))
    alone = torch.cat([compensate(focus[i : i + 1], mask[i : i + 1], **options(case)) for i in range(len(mask))])
    assert_close(together, alone, FLOAT64)
