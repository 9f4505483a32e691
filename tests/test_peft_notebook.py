"""What notebook 04 draws: a trained change taken apart and cut to a rank, and all methods side by side."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from llmcourse import show
from llmcourse.peft import grid, pictures
from llmcourse.peft.contest import Run, Setting

SHAPES = ((6, 9), (9, 4))


def model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(*shape) for shape in SHAPES), nn.LayerNorm(4))


BEFORE, AFTER = model(0), model(1)
CHANGES = pictures.changes(BEFORE, AFTER)


# ---- a change, taken apart --------------------------------------------------------------------------------------------


def test_rank_0_is_the_matrix_before_and_full_rank_the_one_after():
    for name, change in CHANGES.items():
        torch.testing.assert_close(change.cut(0), BEFORE.get_submodule(name).weight)
        torch.testing.assert_close(change.cut(99), AFTER.get_submodule(name).weight)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_cut_change_has_that_rank_and_keeps_the_largest_directions(rank):
    """What is left out is as long as the singular values left out (Eckart and Young)."""
    for name, change in CHANGES.items():
        kept = change.cut(rank) - change.before
        assert torch.linalg.matrix_rank(kept) == rank
        rest = AFTER.get_submodule(name).weight - change.cut(rank)
        torch.testing.assert_close(rest.norm(), change.S[rank:].norm())


def test_every_linear_layer_is_taken_apart_and_nothing_else():
    assert list(CHANGES) == ["0", "1"]


def test_inside_the_block_the_model_carries_the_cut_change_and_afterwards_its_own_weights():
    """Also when the block is left by an error."""
    tuned = copy.deepcopy(AFTER)
    with pytest.raises(KeyError), pictures.cut_to(tuned, CHANGES, 1):
        torch.testing.assert_close(tuned.get_submodule("0").weight, CHANGES["0"].cut(1))
        raise KeyError
    for mine, kept in zip(tuned.parameters(), AFTER.parameters(), strict=True):
        assert torch.equal(mine, kept)


def test_energy_grows_from_nothing_to_all():
    shares = [pictures.energy(CHANGES, rank) for rank in (0, 1, 2, 4, 9)]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == pytest.approx(1)


def test_models_that_do_not_differ_or_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="no linear layer has changed"):
        pictures.changes(BEFORE, copy.deepcopy(BEFORE))
    with pytest.raises(ValueError, match='layer "0" is not in the model from before'):
        pictures.changes(nn.Sequential(nn.Linear(2, 2)), AFTER)


def test_the_picture_can_be_drawn_at_both_ends_of_its_control():
    """Its title names the rank, its marker stands on the curve, its alt text tells the F1."""
    scores = {0: 40.0, 2: 70.0, 32: 80.0}

    def dial(rank=2):
        return pictures.spectrum(CHANGES, scores, rank)

    ranks = [values["rank"] for values in show.ends(pictures.CONTROLS, dial)]
    assert {0, 32} <= set(ranks)
    for rank in (0, 2, 32):
        left, right = dial(rank).axes
        assert left.get_title(loc="left").startswith(f"rank {rank} ")
        marker = right.lines[-1]
        assert (marker.get_xdata()[0], marker.get_ydata()[0]) == (rank, scores[rank])
        assert f"F1 {scores[rank]:.0f}" in pictures.spectrum_alt(CHANGES, scores, rank)


# ---- all methods ------------------------------------------------------------------------------------------------------

METHODS = ("LoRA", "head only", "full fine-tuning")


def measured() -> grid.Measured:
    """Three seeds each; the second model is five points better, every method three points better than the next."""
    plan = replace(grid.Plan(), models=("tiny-bert-small", "tiny-bert"), methods=METHODS)
    runs = [
        Run(**vars(Setting(model=model, twin=twin, method=name)), lr=0.1, seed=seed, split="test", loss=0.5, trained=9, total=99,
            seconds=1.0, file=9, memory=99, f1=70.0 + seed + 5 * size - 3 * place)
        for size, model in enumerate(plan.models) for twin in plan.twins
        for place, name in enumerate(METHODS) for seed in range(3)
    ]  # fmt: skip
    return grid.Measured(runs=tuple(runs), plan=plan)


def test_the_comparison_has_a_panel_a_twin_and_a_row_a_method():
    axes = pictures.comparison(measured(), METHODS).axes
    assert [axis.get_title() for axis in axes] == list(measured().plan.twins)
    assert [text.get_text() for text in axes[0].get_yticklabels()] == list(METHODS)
    means = [list(container.lines[0].get_xdata()) for container in axes[0].containers]
    assert means == [[71.0, 68.0, 65.0], [76.0, 73.0, 70.0]]


def test_its_alt_text_tells_the_means_of_the_larger_model():
    told = pictures.comparison_alt(measured(), METHODS)
    assert told.count("LoRA 76, head only 73, full fine-tuning 70") == 2
