"""The built-in counting task: the same on every machine, true to its answers, and no use without eyes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vgpo_lite.datasets.shapes import (
    COLOURS,
    DIFFICULTIES,
    IMAGE_SIDE,
    SHAPES,
    SIDE,
    Difficulty,
    Scenes,
    ShapesRows,
    counting_question,
    draw,
    random_scenes,
)
from vgpo_lite.errors import ConfigError

CELL = IMAGE_SIDE // SIDE
PINNED_ANSWERS = ["6", "6", "5", "4", "6", "6", "7", "0", "0", "5", "1", "5"]
PLAIN = Difficulty(empty=0.3, pale=0.0, shift=0.0, noise=0.0, tint=0.0)


def scenes_of(count: int, difficulty: Difficulty = PLAIN, seed: int = 0) -> tuple[np.random.Generator, Scenes]:
    generator = np.random.default_rng(seed)
    return generator, random_scenes(generator, count, difficulty)


def pictures_of(rows: ShapesRows, count: int) -> set[bytes]:
    return {rows[index].images[0].tobytes() for index in range(count)}


def test_a_row_is_the_same_picture_each_time_and_whatever_the_length() -> None:
    first, again = ShapesRows("train")[17], ShapesRows("train", length=50)[17]
    assert first.images[0].tobytes() == again.images[0].tobytes()
    assert (first.sample_id, first.question, first.answer) == (again.sample_id, again.question, again.answer)


def test_the_first_held_out_answers_are_these_on_every_machine() -> None:
    rows = ShapesRows("eval")
    assert [rows[index].answer for index in range(12)] == PINNED_ANSWERS


def test_no_picture_is_both_trained_on_and_held_out() -> None:
    seen, held_out, other_seed = (
        pictures_of(rows, 100) for rows in (ShapesRows("train"), ShapesRows("eval"), ShapesRows("train", seed=1))
    )
    assert (len(seen), len(held_out), len(other_seed)) == (100, 100, 100)
    assert not seen & held_out
    assert not seen & other_seed


def test_the_fingerprint_tells_rows_apart() -> None:
    prints = [
        ShapesRows("train").fingerprint,
        ShapesRows("eval").fingerprint,
        ShapesRows("train", seed=1).fingerprint,
        ShapesRows("train", difficulty="harder").fingerprint,
        ShapesRows("train", length=7).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert ShapesRows("train").fingerprint == prints[0]


def test_answers_count_what_stands_in_the_cells() -> None:
    _, scenes = scenes_of(50)
    for number, counts in enumerate(scenes.row_counts()):
        asked = (scenes.asked_shape[number], scenes.asked_colour[number])
        for row in range(SIDE):
            cells = zip(scenes.shape[number, row], scenes.colour[number, row], strict=True)
            assert counts[row] == sum(cell == asked for cell in cells)


def test_the_picture_shows_the_colours_that_the_scene_names() -> None:
    generator, scenes = scenes_of(30)
    middles = draw(generator, scenes, PLAIN)[:, CELL // 2 :: CELL, CELL // 2 :: CELL].astype(int)
    paints = np.array(list(COLOURS.values()))
    filled = scenes.shape >= 0
    nearest = np.abs(middles[..., None, :] - paints).sum(-1).argmin(-1)
    assert filled.any()
    assert (nearest[filled] == scenes.colour[filled]).all()
    greys = middles[~filled]
    assert (greys.max(-1) - greys.min(-1) == 0).all()


def test_each_shape_covers_its_own_area() -> None:
    # Areas in radii: circle pi; square (2 * 0.9)^2 = 3.24; cross 2 * (2.1 * 0.8) - 0.8^2 = 2.72; triangle of base
    # 2 * (0.75 + 0.95) / 1.732 = 1.963 and height 1.7 (its sides meet at y = 0.95): 1.669
    expected = {"circle": np.pi, "square": 3.24, "triangle": 1.669, "cross": 2.72}
    count = 60
    for number, name in enumerate(SHAPES):
        shape = np.full((count, SIDE, SIDE), number)
        nothing = np.zeros(count, int)
        scenes = Scenes(
            shape=shape, colour=shape * 0, fade=shape * np.float32(0), asked_shape=nothing, asked_colour=nothing
        )
        picture = draw(np.random.default_rng(0), scenes, PLAIN)[..., 1].astype(float)
        ground = picture[:, :1, :1]
        covered = (ground - picture) / (ground - COLOURS["red"][1])
        radii = np.random.default_rng(0).uniform(0.26, 0.36, shape.shape) * CELL  # the first that is drawn
        assert covered.sum() / (radii**2).sum() == pytest.approx(expected[name], rel=0.02)


def test_pale_shapes_keep_the_share_of_colour_they_should() -> None:
    generator, scenes = scenes_of(40, Difficulty(pale=1.0, noise=0.0, tint=0.0, shift=0.0, empty=0.0))
    assert scenes.fade.min() >= 0.4
    assert scenes.fade.max() <= 0.8
    picture = draw(generator, scenes, Difficulty(pale=1.0, noise=0.0, tint=0.0, shift=0.0))
    middles = picture[:, CELL // 2 :: CELL, CELL // 2 :: CELL].astype(float)
    ground = picture[:, :1, :1].astype(float)
    paint = np.array(list(COLOURS.values()))[scenes.colour]
    expected = ground + (paint - ground) * (1 - scenes.fade[..., None])
    assert np.abs(middles - expected).max() <= 1.0  # colours are whole numbers


def test_every_count_is_as_likely_as_the_others_so_that_guessing_does_not_pay() -> None:
    for difficulty in DIFFICULTIES.values():
        _, scenes = scenes_of(20_000, difficulty)
        shares = np.bincount(scenes.row_counts().sum(-1)) / 20_000
        expected = 1 / (difficulty.most + 1)
        assert len(shares) == difficulty.most + 1
        assert np.abs(shares - expected).max() < 4 * np.sqrt(expected / 20_000)


def test_neither_colour_nor_shape_alone_tells_the_count() -> None:
    _, scenes = scenes_of(2_000, DIFFICULTIES["normal"])
    counts = scenes.row_counts().sum(-1)
    of_shape = (scenes.shape == scenes.asked_shape[:, None, None]).sum((1, 2))
    of_colour = ((scenes.shape >= 0) & (scenes.colour == scenes.asked_colour[:, None, None])).sum((1, 2))
    assert (of_shape == counts).mean() < 0.2
    assert (of_colour == counts).mean() < 0.2


def test_questions_name_what_is_asked_and_end_with_their_image() -> None:
    names = Counter(sample.question for sample in map(ShapesRows("eval").__getitem__, range(200)))
    assert set(names) <= {
        counting_question(shape, colour) + "<image>" for shape in range(len(SHAPES)) for colour in range(len(COLOURS))
    }
    assert len(names) == len(SHAPES) * len(COLOURS)


def test_row_counts_travel_with_the_sample_and_add_up() -> None:
    for index in range(20):
        sample = ShapesRows("train")[index]
        counts = sample.columns["row_counts"]
        assert isinstance(counts, list)
        assert len(counts) == SIDE
        assert str(sum(counts)) == sample.answer


def test_harder_pictures_hold_more_shapes_and_more_pale_ones() -> None:
    (_, normal), (_, harder) = (scenes_of(500, DIFFICULTIES[name]) for name in ("normal", "harder"))
    assert (harder.shape >= 0).mean() > (normal.shape >= 0).mean() + 0.05
    assert (harder.fade > 0).mean() > (normal.fade > 0).mean() + 0.1


def test_an_unknown_difficulty_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="no variant 'hard'; choose from normal, harder"):
        ShapesRows("train", difficulty="hard")


@pytest.mark.parametrize("index", [-1, 50])
def test_a_row_that_is_not_there_is_an_index_error(index: int) -> None:
    with pytest.raises(IndexError, match=f"rows 0 to 49, asked for {index}"):
        ShapesRows("train", length=50)[index]
