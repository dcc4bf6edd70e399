"""Every image of a row stands at exactly one `<image>`, whatever spelling its data set uses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vgpo_lite.datasets.marks import place_marks, with_choices
from vgpo_lite.datasets.refusals import EMPTY_QUESTION, MARKS, VIDEO, RefusalError


@pytest.mark.parametrize(
    ("question", "images", "placed", "order"),
    [
        ("Find x.", 0, "Find x.", ()),
        ("Find x.", 1, "<image>Find x.", (0,)),
        ("Compare.", 2, "<image><image>Compare.", (0, 1)),
        ("<image>Find x.", 1, "<image>Find x.", (0,)),
        ("Is <image> like <image>?", 2, "Is <image> like <image>?", (0, 1)),
        ("Find x in <image1>.", 1, "Find x in <image>.", (0,)),
        ("Find x in <image_4>.", 1, "Find x in <image>.", (0,)),
        ("See <image 2>, then <image 1>.", 2, "See <image>, then <image>.", (1, 0)),
        ("<image1> and <image1> again", 1, "<image> and image 1 again", (0,)),
        ("<image_3><image_7> In <image_7>?", 2, "<image><image> In image 7?", (0, 1)),
        ("<image><image_2>", 2, None, None),
        ("<image> or <image_2>?", 2, "<image> or <image>?", (0, 1)),
        ("Is <imagery> an <images> tag?", 1, "<image>Is <imagery> an <images> tag?", (0,)),
    ],
)
def test_marks_are_placed(question: str, images: int, placed: str | None, order: tuple[int, ...] | None) -> None:
    if placed is None:
        with pytest.raises(RefusalError, match="no text"):
            place_marks(question, images)
    else:
        assert place_marks(question, images) == (placed, order)


@pytest.mark.parametrize(
    ("question", "images", "reason", "detail"),
    [
        ("<image><image>Find x.", 1, MARKS, "2 marks for 1 images"),
        ("<image>Find x.", 2, MARKS, "1 marks for 2 images"),
        ("<image>Find x.", 0, MARKS, "1 marks for 0 images"),
        ("<image1><image2><image3> three", 2, MARKS, "3 marks for 2 images"),
        ("<image1> one", 2, MARKS, "1 marks for 2 images"),
        ("<image>", 1, EMPTY_QUESTION, "no text"),
        ("  \n", 1, EMPTY_QUESTION, "no text"),
        ("<image_1> <image_2>", 2, EMPTY_QUESTION, "no text"),
        ("<video>What happens?", 0, VIDEO, "<video>"),
    ],
)
def test_marks_that_fit_nothing_are_refused(question: str, images: int, reason: str, detail: str) -> None:
    with pytest.raises(RefusalError) as refusal:
        place_marks(question, images)
    assert refusal.value.reason == reason
    assert detail in refusal.value.detail


PIECES = st.sampled_from(["<image>", "<image1>", "<image_2>", "<image 3>", "word ", "<video", "\n", "<image_999>", "é"])


@given(st.lists(PIECES, max_size=8).map("".join), st.integers(0, 4))
def test_whatever_the_question_marks_and_images_match_or_the_row_is_refused(question: str, images: int) -> None:
    try:
        placed, order = place_marks(question, images)
    except RefusalError:
        return
    assert placed.count("<image>") == images
    assert sorted(order) == list(range(images))


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("cat", "B"), (" cat ", "B"), ("B", "B"), ("(b)", "B"), ("b.", "B"), ("1", "B"), ("0", "A"), ("2", None),
        ("bird", None), ("C", None), (None, None), ("9" * 5000, None),
    ],
)  # fmt: skip
def test_the_gold_of_a_multiple_choice_question_is_a_letter(answer: str | None, letter: str | None) -> None:
    question, gold = with_choices("Which?", answer, ["dog", "cat"])
    assert question == "Which?\n(A) dog\n(B) cat\nAnswer with the letter."
    assert gold == letter


def test_an_option_counts_before_its_number() -> None:
    assert with_choices("How many?", "2", ["3", "2", "1"])[1] == "B"


def test_options_that_the_question_lists_are_not_listed_again() -> None:
    question = "Hint: give the letter.\nQuestion: Which?\nChoices:\n(A) dog\n(B) cat"
    assert with_choices(question, "cat", ["dog", "cat"]) == (question, "B")


@pytest.mark.parametrize("options", [[], [str(option) for option in range(27)]], ids=["none", "27"])
def test_without_usable_options_nothing_changes(options: list[str]) -> None:
    assert with_choices("Which?", "5", options) == ("Which?", "5")
