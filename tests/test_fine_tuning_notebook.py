"""What notebook 03 needs beside the methods it teaches: confusion matrices, learnt against kept, weights between models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from llmcourse import show
from llmcourse.claims import LEDGER
from llmcourse.fine_tuning import forgetting, pictures
from llmcourse.metrics import Interval

MATRIX = np.array([[8, 1, 0], [2, 5, 1], [0, 0, 9]])
NAMES = ("a", "b", "c")
POINTS = {
    "plain": (Interval(60.0, 50.0, 70.0), Interval(5.0, 1.0, 9.0)),
    "replay": (Interval(58.0, 55.0, 61.0), Interval(70.0, 60.0, 80.0)),
}


def linear(seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


# ---- confusion ---------------------------------------------------------------------------------------------------------


def test_every_count_of_a_confusion_matrix_stands_in_its_cell():
    """Row and column of each text are the true class and the guess."""
    axis = pictures.confusion(MATRIX, NAMES, "nine texts").axes[0]
    written = {(int(text.get_position()[1]), int(text.get_position()[0])): int(text.get_text()) for text in axis.texts}
    assert written == {place: MATRIX[place] for place in np.ndindex(3, 3)}
    assert axis.get_xlabel() == "guessed" and axis.get_ylabel() == "true" and axis.get_title(loc="left") == "nine texts"


def test_shades_are_shares_of_the_true_class_also_where_it_never_occurs():
    """A rare class is as dark on its diagonal as a common one; an empty row stays white."""
    image = pictures.confusion(np.array([[0, 0], [3, 1]]), ("x", "y")).axes[0].images[0].get_array()
    np.testing.assert_allclose(image, [[0, 0], [0.75, 0.25]])


def test_the_alt_text_of_a_matrix_reads_every_row():
    """By names, in order."""
    assert pictures.confusion_alt(MATRIX, NAMES).endswith("Of true c: 0 as a; 0 as b; 9 as c")


# ---- learnt and kept ---------------------------------------------------------------------------------------------------


def test_the_plane_has_a_point_a_method_and_one_to_move():
    """Means where they belong, each named."""
    axis = pictures.plane(POINTS, (30.0, 40.0), title="t", learnt="x", kept="y").axes[0]
    means = [tuple(float(value[0]) for value in container.lines[0].get_data()) for container in axis.containers]
    assert means == [(60.0, 5.0), (58.0, 70.0)]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["between", "plain", "replay"]
    assert len(pictures.plane(POINTS).axes[0].lines) == len(axis.lines) - 1


def test_methods_differ_in_marker_as_well_as_in_colour():
    """For readers who see no colours."""
    axis = pictures.plane({f"m{i}": POINTS["plain"] for i in range(8)}).axes[0]
    assert len({container.lines[0].get_marker() for container in axis.containers}) == 8


def test_the_alt_text_of_the_plane_tells_every_point():
    """Learnt and kept of each."""
    told = pictures.plane_alt(POINTS, (30.0, 40.0))
    assert "plain 60 learnt, 5 kept; replay 58 learnt, 70 kept; between the two models 30 learnt, 40 kept" in told


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (0.25, 1.0), (1.0, 4.0)])
def test_weights_between_two_models_are_mixtures_of_both(share, expected):
    """All of the first at 0, all of the second at 1."""
    ends = (
        {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)},
        {"weight": torch.full((2, 3), 4.0), "bias": torch.full((2,), 4.0)},
    )
    model = pictures.between(linear(0), *ends, share)
    assert all(torch.allclose(p, torch.full_like(p, expected)) for p in model.parameters())


def test_the_ends_of_the_dial_are_the_two_models_themselves():
    """Snapshots of trainable weights are what it takes, and neither is changed."""
    first, second, third = linear(0), linear(1), linear(2)
    before, after = forgetting.snapshot(first), forgetting.snapshot(second)
    x = torch.randn(4, 3)
    torch.testing.assert_close(pictures.between(third, before, after, 0)(x), first(x))
    torch.testing.assert_close(pictures.between(third, before, after, 1)(x), second(x))
    torch.testing.assert_close(before["weight"], first.weight)


def test_a_share_outside_the_dial_is_refused():
    """It would leave the line between the two models."""
    weights = forgetting.snapshot(linear(0))
    with pytest.raises(ValueError, match=r"share=1\.2 .*; choose 0–1"):
        pictures.between(linear(0), weights, weights, 1.2)


def test_the_dial_goes_from_one_model_to_the_other():
    """Both ends of its control can be drawn."""
    settings = list(show.ends(pictures.CONTROLS))
    assert {values["share"] for values in settings} == {0.0, 1.0}
    assert all(pictures.plane(POINTS, (100 * values["share"], 0.0)).axes for values in settings)


# ---- the claim ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peft", "verdict"), [((20.0, 10.0, 30.0), "holds at this scale"), ((-1.0, -3.0, 1.0), "does not hold here")]
)
def test_both_multitask_training_and_lora_must_keep_more(peft, verdict):
    """One that does not decides."""
    rule = LEDGER["mtl-forget"].rule
    numbers = {"kept_multitask_minus_single": (50.0, 40.0, 60.0), "kept_peft_minus_single": peft}
    assert rule.judge(rule.validate(numbers)) == verdict
