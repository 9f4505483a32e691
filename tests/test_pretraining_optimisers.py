"""Optimisers written out, equal to torch's; clipping, loss scaling, the noise scale, the schedule designer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from llmcourse import show
from llmcourse.pretraining import optimisers as o
from llmcourse.train import TrainConfig, fit, lr_multiplier


def network(seed: int = 0) -> nn.Module:
    """A wide matrix, a tall one, a square one, and vectors."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.LayerNorm(12), nn.Linear(12, 3))


def trained(make, steps: int = 25) -> nn.Module:
    """The network after some steps on data of its own; one parameter has no gradient."""
    model = network()
    model[0].bias.requires_grad_(False)
    optimizer = make(model)
    data = torch.randn(steps, 8, 6, generator=torch.Generator().manual_seed(1))
    for x in data:
        optimizer.zero_grad()
        (model(x) - x[:, :3].sin()).square().mean().backward()
        optimizer.step()
    return model


def assert_same(ours: nn.Module, theirs: nn.Module, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    start = network()
    for p, q, before in zip(ours.parameters(), theirs.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=atol)
        assert not torch.equal(p, before) or not p.requires_grad


def matrices(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.ndim == 2]


# ---------------------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("settings", [{}, {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.3}])
def test_adamw_equals_torch(settings):
    assert_same(
        trained(lambda m: o.AdamW(m.parameters(), **settings)), trained(lambda m: torch.optim.AdamW(m.parameters(), **settings))
    )


def test_first_step_of_adamw_is_the_learning_rate_whatever_the_size_of_the_gradient():
    weight = torch.zeros(3)
    moved, *_ = o.adamw_step(weight, torch.tensor([1e-3, 5.0, -700.0]), weight, weight, 1, lr=0.1)
    torch.testing.assert_close(moved, torch.tensor([-0.1, -0.1, 0.1]), rtol=1e-4, atol=1e-5)


def test_the_decay_of_adamw_is_apart_from_the_gradient():
    weight, zero = torch.tensor([2.0]), torch.zeros(1)
    moved, *_ = o.adamw_step(weight, zero, zero, zero, 1, lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(moved, torch.tensor([1.9]))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        (
            {"lr": 0.5, "beta2_decay": -0.5, "smallest_scale": 0.3, "clip": 1.5, "weight_decay": 0.1},
            {"lr": 0.5, "beta2_decay": -0.5, "eps": (None, 0.3), "d": 1.5, "weight_decay": 0.1},
        ),
    ],
)
def test_adafactor_equals_torch(ours, theirs):
    assert_same(
        trained(lambda m: o.Adafactor(m.parameters(), **ours)), trained(lambda m: torch.optim.Adafactor(m.parameters(), **theirs))
    )


def test_adafactor_equals_torch_on_a_stack_of_matrices():
    p, q = (nn.Parameter(torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))) for _ in range(2))
    for make, x in ((o.Adafactor, p), (torch.optim.Adafactor, q)):
        optimizer = make([x])
        for step in range(5):
            x.grad = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(step))
            optimizer.step()
    torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_adafactor_survives_a_gradient_of_zeros_as_torch_does():
    p, q = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
    for make, x in ((o.Adafactor, p), (torch.optim.Adafactor, q)):
        x.grad = torch.zeros(3, 4)
        make([x], weight_decay=0.1).step()
    torch.testing.assert_close(p, q)


def test_factored_squares_are_exact_for_rank_one():
    r, c = torch.rand(4, 1) + 0.1, torch.rand(1, 6) + 0.1
    squares = r @ c
    torch.testing.assert_close(o.adafactor_square(squares.mean(-1, keepdim=True), squares.mean(-2, keepdim=True)), squares)


def test_adafactor_keeps_rows_plus_columns_where_adamw_keeps_twice_their_product():
    def kept(make):
        p = nn.Parameter(torch.randn(30, 50))
        optimizer = make([p])
        p.grad = torch.randn(30, 50)
        optimizer.step()
        return o.state_bytes(optimizer)

    assert (kept(o.Adafactor), kept(o.AdamW), kept(o.Muon)) == (4 * (30 + 50), 4 * 2 * 30 * 50, 4 * 30 * 50)
    assert kept(torch.optim.AdamW) == 4 * 2 * 30 * 50 + 4  # torch counts its steps in a tensor


@pytest.mark.parametrize("settings", [{}, {"lr": 0.1, "beta": 0.6, "weight_decay": 0.5}])
@pytest.mark.parametrize("shape", [(6, 12), (12, 6), (8, 8)])
def test_muon_equals_torch(settings, shape):
    """Given the same gradients: computed ones would drift apart, as bfloat16 inside magnifies the last digit."""
    theirs = {"lr": 0.02} | {"momentum" if name == "beta" else name: value for name, value in settings.items()}
    p, q = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.ones(shape))
    ours, reference = o.Muon([p], **settings), torch.optim.Muon([q], **theirs)
    for step in range(10):
        p.grad, q.grad = (torch.randn(shape, generator=torch.Generator().manual_seed(step)) for _ in range(2))
        ours.step()
        reference.step()
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (5, 20), (20, 5)])
def test_orthogonalised_matrix_has_singular_values_near_one_and_the_same_singular_vectors(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    got = o.orthogonalise(matrix, dtype=torch.float32)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    rotated = u.mT @ got @ vt.mT
    torch.testing.assert_close(rotated, torch.diag(rotated.diag()), rtol=0, atol=1e-4)
    assert ((rotated.diag() > 0.6) & (rotated.diag() < 1.3)).all()
    assert o.orthogonalise(matrix).dtype == torch.float32


def test_muon_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match=r"Muon needs matrices, got a parameter of shape \[12\]; give it to AdamW"):
        o.Muon(network().parameters())


def test_fit_takes_our_optimizers_and_resumes_them_exactly(tmp_path):
    def two(model, config):
        return [o.Muon(matrices(model), lr=0.02), o.Adafactor([p for p in model.parameters() if p.ndim == 1])]

    def batch(i, stop=None):
        if i == stop:
            raise ZeroDivisionError
        return torch.randn(8, 6, generator=torch.Generator().manual_seed(i))

    def loss(model, x):
        return (model(x) - x[:, :3].sin()).square().mean()

    run = TrainConfig(steps=12, checkpoint_every=5, bar=False)
    whole = fit(network(), batch, run, loss=loss, optimizer=two)
    with pytest.raises(ZeroDivisionError):
        fit(network(), lambda i: batch(i, stop=7), run, loss=loss, optimizer=two, directory=tmp_path)
    assert fit(network(), batch, run, loss=loss, optimizer=two, directory=tmp_path).losses == whole.losses
    assert whole.losses[-1] < whole.losses[0]


# ---------------------------------------------------------------------------------------------------------------- around the step


@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_clipping_by_the_global_norm_equals_torch(max_norm):
    ours, theirs = network(), network()
    for model in (ours, theirs):
        model(torch.ones(2, 6)).square().sum().backward()
        model[0].bias.grad = None
    norm = o.clip_by_global_norm(ours.parameters(), max_norm)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(theirs.parameters(), max_norm))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-7)


def test_clipping_keeps_the_direction_over_all_parameters():
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    p.grad, q.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert o.clip_by_global_norm([p, q], 1.0) == 5.0
    torch.testing.assert_close(torch.cat((p.grad, q.grad)), torch.tensor([0.6, 0.0, 0.8]), rtol=1e-5, atol=1e-6)


def test_small_numbers_vanish_in_float16_and_a_scale_saves_them():
    values = torch.tensor([1e-9, 1e-8, 1e-3, 0.0, -1e-9])
    assert o.flushed_to_zero(values) == 0.75
    assert o.flushed_to_zero(values, scale=65536.0) == 0.0
    assert o.flushed_to_zero(values, dtype=torch.bfloat16) == 0.0
    assert o.flushed_to_zero(torch.zeros(2)) == 0.0


def test_loss_scaler_equals_torchs_through_overflows_and_growth():
    def scales(scaler, backward, step, current):
        p = nn.Parameter(torch.ones(1))
        optimizer, seen = torch.optim.SGD([p], lr=0.1), []
        for i in range(12):
            optimizer.zero_grad()
            backward(scaler, (p * (math.inf if i in (4, 5, 9) else 1.0)).sum())
            step(scaler, optimizer)
            seen.append((current(scaler), p.item()))
        return seen

    def their_step(scaler, optimizer):
        scaler.step(optimizer)
        scaler.update()

    ours = scales(o.LossScaler(scale=8.0, patience=3), o.LossScaler.backward, o.LossScaler.step, lambda s: s.scale)
    theirs = scales(
        torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3),
        lambda s, loss: s.scale(loss).backward(),
        their_step,
        lambda s: s.get_scale(),
    )
    assert ours == theirs
    assert len({scale for scale, _ in ours}) > 2


def test_loss_scaler_says_whether_it_stepped_and_leaves_unscaled_gradients():
    p = nn.Parameter(torch.ones(1))
    optimizer, scaler = torch.optim.SGD([p], lr=0.5), o.LossScaler()
    scaler.backward((2 * p).sum())
    assert scaler.step(optimizer)
    assert (p.item(), p.grad.item()) == (0.0, 2.0)


def test_noise_scale_is_the_noise_over_the_signal_where_both_are_known():
    """Gradients with mean square 4 and total variance 60: |g_B|² = 4 + 60/B, so the scale is 60/4."""
    assert o.noise_scale(4, 4 + 60 / 4, 32, 4 + 60 / 32) == pytest.approx(15.0)
    with pytest.raises(ValueError, match="small is 8 and large 8"):
        o.noise_scale(8, 1.0, 8, 1.0)


# ---------------------------------------------------------------------------------------------------------------- designer


ENDS = [{"schedule": name, **rest} for name in ("cosine", "wsd") for rest in ({"decay_percent": 1}, {"decay_percent": 100})]
STARTS = {"schedule": "cosine", "warmup_percent": 10, "decay_percent": 20, "final_percent": 10}


@pytest.mark.parametrize(
    "values",
    [*show.ends(o.SCHEDULE_CONTROLS, o.schedule_picture), *(STARTS | ends for ends in ENDS)],
    ids=lambda v: str([*v.values()]),
)
def test_schedule_picture_draws_the_schedule_at_both_ends_of_every_control(values):
    fig = o.schedule_picture(**values)
    (line,) = fig.axes[0].get_lines()
    config = TrainConfig(
        steps=1000,
        schedule=values["schedule"],
        warmup=10 * values["warmup_percent"],
        decay_share=values["decay_percent"] / 100,
        final_lr_ratio=values["final_percent"] / 100,
    )
    assert line.get_ydata() == pytest.approx([1e-3 * lr_multiplier(step, config) for step in range(1000)])
    assert max(line.get_ydata()) <= 1e-3 * (1 + 1e-9)


def test_schedule_designer_starts_as_a_picture_that_says_its_settings(capsys):
    show.play(o.schedule_picture, alt="The learning rate along a run", **o.SCHEDULE_CONTROLS)
    assert "schedule = cosine, warmup percent = 10" in capsys.readouterr().out


def test_schedule_picture_says_its_average():
    title = o.schedule_picture("linear", warmup_percent=0, final_percent=0).axes[0].get_title(loc="left")
    assert title == "linear: 0 steps of warm-up, on average 50% of the peak"
