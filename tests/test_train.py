"""The training loop: its arithmetic, its checkpoints, and how it stops."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

from llmcourse import train
from llmcourse.train import CheckpointError, Recovery, TrainConfig, TrainingDiverged, checkpoints, fit, is_spike, lr_multiplier
from llmcourse.train.spikes import batch_number


class Tiny(nn.Module):
    """A tied embedding with dropout: the smallest model on which resuming can go wrong."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.norm = nn.LayerNorm(16)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(16, 50)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        logits = self.head(self.dropout(self.norm(self.embedding(input_ids))))
        return SimpleNamespace(loss=nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))


def tiny(dropout: float = 0.2) -> Tiny:
    torch.manual_seed(1)
    return Tiny(dropout)


def batch(i: int, rows: int = 4) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 50, (rows, 9), generator=torch.Generator().manual_seed(i))
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}


def config(**changes: object) -> TrainConfig:
    return TrainConfig(**({"steps": 12, "lr": 1e-2, "bar": False} | changes))


@pytest.fixture
def unchecked(monkeypatch):
    """Without the run-time type checker: it would speak before our own message, and it draws from Python's generator."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def stop_at(i: int):
    def stopping(j: int) -> dict[str, torch.Tensor]:
        if j == i:
            raise ZeroDivisionError
        return batch(j)

    return stopping


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# ------------------------------------------------------------------------------------------------ schedules


def test_warmup_rises_in_equal_parts_and_wastes_no_step():
    run = config(steps=10, warmup=4, schedule="constant")
    assert [lr_multiplier(s, run) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("schedule", "middle", "end"), [("linear", 0.6, 0.2), ("cosine", 0.6, 0.2), ("constant", 1.0, 1.0)])
def test_schedule_is_one_after_the_warmup_halfway_in_the_middle_and_ends_at_the_final_ratio(schedule, middle, end):
    run = config(steps=12, warmup=2, schedule=schedule, final_lr_ratio=0.2)
    assert [lr_multiplier(s, run) for s in (2, 7, 12)] == pytest.approx([1.0, middle, end])


def test_cosine_follows_the_cosine_and_not_a_line():
    assert lr_multiplier(25, config(steps=100)) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_inverse_square_root_halves_at_four_times_the_warmup_and_keeps_its_floor():
    run = config(steps=10_000, warmup=10, schedule="inverse-sqrt", final_lr_ratio=0.1)
    assert [lr_multiplier(s, run) for s in (10, 40, 9_000)] == pytest.approx([1.0, 0.5, 0.1])


def test_schedules_without_warmup_equal_transformers():
    from transformers import get_scheduler

    for ours, theirs in (("linear", "linear"), ("cosine", "cosine")):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=0, num_training_steps=20)
        for step in range(20):
            assert lr_multiplier(step, config(steps=20, schedule=ours)) == pytest.approx(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        ("constant", "constant_with_warmup", {}),
        ("linear", "linear", {}),
        ("cosine", "cosine", {}),
        ("inverse-sqrt", "inverse_sqrt", {}),
        ("wsd", "warmup_stable_decay", {"num_decay_steps": 6, "decay_type": "1-sqrt"}),
    ],
)
def test_schedules_equal_transformers_whose_warmup_wastes_its_first_step(ours, theirs, options):
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(theirs, optimizer, 5, 30, scheduler_specific_kwargs=options)
    their_rates = []
    for _ in range(30):
        their_rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    run = config(steps=30, warmup=5, schedule=ours, decay_share=0.2)
    our_rates = [lr_multiplier(step, run) for step in range(30)]
    assert our_rates[:5] == pytest.approx(their_rates[1:6])
    assert our_rates[5:] == pytest.approx(their_rates[5:])


def test_wsd_stays_at_its_peak_and_ends_at_the_final_ratio_also_when_the_decay_would_begin_in_the_warmup():
    run = config(steps=100, warmup=10, schedule="wsd", decay_share=0.2, final_lr_ratio=0.1)
    assert [lr_multiplier(s, run) for s in (10, 79, 80, 85, 100)] == pytest.approx([1.0, 1.0, 1.0, 0.55, 0.1])
    long = config(steps=100, warmup=50, schedule="wsd", decay_share=1.0)
    assert [lr_multiplier(s, long) for s in (49, 50, 100)] == pytest.approx([1.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"schedule": "cosin"}, "schedule 'cosin' is unknown; choose one of constant, linear, cosine, inverse-sqrt, wsd"),
        ({"decay_share": 0.0}, "decay_share is 0.0; choose a value above 0, at most 1"),
        ({"recover": Recovery(skip=4), "checkpoint_every": 1}, "do not reach back over recover.skip=4 batches; raise keep"),
        ({"recover": Recovery(), "checkpoint_every": 50, "keep": 1}, "keep=1 checkpoints"),
        ({"precision": "fp16"}, "choose one of float32, bfloat16, float16"),
        ({"warmup": 13}, "warmup is 13 steps of 12; choose 0–12"),
        ({"steps": 0}, "steps is 0; choose 1 or more"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"keep": 0}, "keep is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
    ],
)
def test_impossible_config_is_refused_with_what_is_allowed(wrong, message, unchecked):
    with pytest.raises(ValueError, match=message):
        config(**wrong)


# ------------------------------------------------------------------------------------------------ the loop


def test_loop_equals_the_plain_pytorch_loop_it_stands_for():
    run = config(warmup=3, weight_decay=0.1, clip=0.5)
    model, plain = tiny(0.0), tiny(0.0)
    history = fit(model, batch, run)
    matrices = [p for p in plain.parameters() if p.ndim == 2]
    vectors = [p for p in plain.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=1e-2)
    for step in range(12):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * lr_multiplier(step, run)
        optimizer.zero_grad()
        loss = plain(**batch(step)).loss
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        torch.testing.assert_close(history.losses[step], loss.item(), rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_clip_none_leaves_the_gradient_as_it_is():
    def sgd(model, config):
        return torch.optim.SGD(model.parameters(), lr=config.lr)

    def moved(clip):
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        fit(model, lambda i: i, config(steps=1, lr=1.0, clip=clip), loss=lambda m, b: 3 * m.weight.sum(), optimizer=sgd)
        return model.weight.item()

    assert (moved(None), moved(1.0)) == pytest.approx((-3.0, -1.0), abs=1e-4)


def test_accumulated_micro_batches_equal_one_large_batch():
    def whole(i):
        parts = [batch(4 * i + k) for k in range(4)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    large, small = tiny(0.0), tiny(0.0)
    one, four = fit(large, whole, config()), fit(small, batch, config(accumulate=4))
    torch.testing.assert_close(torch.tensor(one.losses), torch.tensor(four.losses), rtol=1e-4, atol=1e-5)
    assert one.tokens == four.tokens == 12 * 4 * 32


def test_the_tokens_of_a_batch_within_a_batch_are_counted_too():
    def loss(model, both):
        return model(**both["more"]).loss + model(both["input_ids"], both["labels"]).loss

    history = fit(tiny(), lambda i: batch(i) | {"more": batch(i, rows=2)}, config(steps=1), loss=loss)
    assert history.tokens == batch(0)["input_ids"].numel() + batch(0, rows=2)["input_ids"].numel()


def test_gradients_left_from_before_or_outside_the_optimizer_play_no_part():
    def head_only(model, config):
        return torch.optim.SGD([model.head.bias], lr=config.lr)

    clean, dirty, narrow = tiny(0.0), tiny(0.0), tiny(0.0)
    dirty(**batch(99)).loss.backward()
    for p in (narrow.embedding.weight, *narrow.norm.parameters()):
        p.requires_grad_(False)
    runs = [fit(model, batch, config(clip=0.01, lr=1.0), optimizer=head_only) for model in (clean, dirty, narrow)]
    assert runs[0].losses == runs[1].losses == runs[2].losses


def test_norms_biases_and_frozen_weights_do_not_decay():
    model = tiny()
    model.norm.weight.requires_grad_(False)
    decays, spared = train.decay_groups(model, 0.1)
    assert (decays["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert [p.shape for p in decays["params"]] == [(50, 16)]
    assert {id(p) for p in spared["params"]} == {id(model.norm.bias), id(model.head.bias)}


def test_several_optimizers_keep_their_own_peak_under_one_schedule():
    made = []

    def two(model, config):
        matrix = torch.optim.Muon([model.embedding.weight], lr=10 * config.lr)
        rest = torch.optim.AdamW([p for p in model.parameters() if p.ndim == 1], lr=config.lr)
        made.extend([matrix, rest])
        return [matrix, rest]

    history = fit(tiny(), batch, config(steps=4, schedule="linear"), optimizer=two)
    assert [o.param_groups[0]["lr"] for o in made] == pytest.approx([0.1 / 4, 0.01 / 4])
    assert history.lrs == pytest.approx([0.1, 0.075, 0.05, 0.025])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_computes_in_its_dtype_keeps_float32_weights_and_stays_close(precision):
    seen, model = set(), tiny(0.0)
    model.head.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    history = fit(model, batch, config(precision=precision))
    assert seen == {getattr(torch, precision)}
    assert model.head.weight.dtype == torch.float32
    assert history.losses == pytest.approx(fit(tiny(0.0), batch, config()).losses, abs=0.03)


def test_float16_parameters_under_float16_precision_are_refused():
    with pytest.raises(ValueError, match=r"call model.float\(\) first"):
        fit(tiny().half(), batch, config(precision="float16"))


def test_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="no trainable parameters"):
        fit(tiny().requires_grad_(False), batch, config())


def test_model_that_returns_no_loss_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="put `labels` into the batch"):
        fit(nn.Linear(2, 2), lambda i: {"input": torch.zeros(1, 2)}, config())


def test_every_module_gets_its_own_mode_back():
    model = tiny().eval()
    model.norm.train()
    during = []
    fit(model, lambda i: during.append(model.dropout.training) or batch(i), config(steps=1))
    assert (during, model.training, model.dropout.training, model.norm.training) == ([True], False, False, True)


def test_evaluation_runs_in_eval_mode_without_gradients_at_its_steps():
    seen = []

    def evaluate(model, step):
        seen.append((step, model.training, torch.is_grad_enabled()))
        return {"score": torch.tensor(step / 2)}

    history = fit(tiny(), batch, config(evaluate_every=5), evaluate=evaluate)
    assert seen == [(5, False, False), (10, False, False), (12, False, False)]
    assert history.evaluations == [{"step": s, "score": s / 2} for s in (5, 10, 12)]


def test_evaluation_does_not_disturb_any_random_number_of_the_run(unchecked):
    drawn = []

    def draw(i):
        drawn[-1].append((random.random(), np.random.rand()))
        return batch(i)

    def greedy_for_randomness(model, step):
        return {"x": float(torch.rand(1)) + random.random() + np.random.rand()}

    losses = []
    for evaluate in (None, greedy_for_randomness):
        drawn.append([])
        losses.append(fit(tiny(), draw, config(evaluate_every=1), evaluate=evaluate).losses)
    assert losses[0] == losses[1]
    assert drawn[0] == drawn[1]


def test_the_seed_decides_the_dropout():
    one, again, other = (fit(tiny(), batch, config(seed=seed)).losses for seed in (0, 0, 1))
    assert one == again != other


def test_bar_shows_loss_lr_and_speed_on_one_kept_line(capsys):
    fit(tiny(), batch, config(bar=True))
    last = capsys.readouterr().err.splitlines()[-1]
    assert all(word in last for word in ("12/12", "loss ", "lr ", "tokens/s"))


def test_bar_false_prints_nothing(capsys, tmp_path):
    for _ in range(2):
        fit(tiny(), batch, config(), directory=tmp_path)
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------ divergence


def test_nan_loss_stops_with_step_lr_and_last_losses_and_leaves_the_checkpoint(tmp_path):
    def loss(model, b):
        i = b.pop("i")
        return model(**b).loss * (math.nan if i == 6 else 1.0)

    with pytest.raises(TrainingDiverged, match=r"loss became nan at step 6 .*Try a lower lr") as caught:
        fit(tiny(), lambda i: batch(i) | {"i": i}, config(checkpoint_every=3, schedule="constant"), loss=loss, directory=tmp_path)
    assert (caught.value.step, caught.value.lr, len(caught.value.losses)) == (6, 0.01, 5)
    assert names(tmp_path) == ["step-00000003", "step-00000006"]


def test_weights_gone_bad_behind_a_finite_loss_are_not_saved(tmp_path):
    def loss(model, b):
        return (model.embedding.weight - model.embedding.weight.detach()).sum().sqrt()  # 0, with an infinite slope

    with pytest.raises(TrainingDiverged, match="parameter stopped being finite at step 0"):
        fit(tiny(), batch, config(checkpoint_every=1), loss=loss, directory=tmp_path)
    assert names(tmp_path) == []


# ------------------------------------------------------------------------------------------------ loss spikes


def test_a_spike_is_a_loss_far_above_the_recent_median_or_not_finite():
    calm = [1.0 + 0.01 * (-1) ** i for i in range(40)]  # median 1, MAD 0.01: the limit is 1 + 10 · 1.4826 · 0.01
    recovery = Recovery(window=32, threshold=10)
    assert [is_spike(x, calm, recovery) for x in (1.148, 1.149, 0.1, math.nan, math.inf)] == [False, True, False, True, True]


def test_only_the_window_counts_and_half_of_it_must_be_there():
    recovery = Recovery(window=8, threshold=10)
    wild_then_calm = [50.0, 80.0] * 8 + [1.0, 1.1] * 4
    assert is_spike(5.0, wild_then_calm, recovery)
    assert is_spike(9.0, [1.0, 1.1, 1.0, 1.1], recovery)
    assert not is_spike(9.0, [1.0, 1.1, 1.0], recovery)
    assert is_spike(math.nan, [], recovery)


def test_losses_that_hardly_vary_do_not_make_every_rise_a_spike():
    assert not is_spike(1.05, [1.0] * 64, Recovery(threshold=10))


def test_batches_left_out_are_passed_over_and_later_ones_move_up():
    recoveries = [{"skipped": [5, 6]}, {"skipped": [3, 4, 7]}, {"skipped": [4, 9]}]
    assert [batch_number(step, recoveries) for step in range(6)] == [0, 1, 2, 8, 10, 11]
    assert [batch_number(step, []) for step in range(3)] == [0, 1, 2]


def poisoned(bad: set[int], factor: float):
    """Batches of a learnable rule (the next token is the last plus one); a bad one has random labels and a huge weight."""

    def make(i: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(i)
        ids = torch.randint(0, 50, (4, 8), generator=generator)
        labels = torch.randint(0, 50, (4, 8), generator=generator) if i in bad else (ids + 1) % 50
        return {"input_ids": ids, "labels": labels, "weight": torch.tensor(factor if i in bad else 1.0)}

    return make


def weighted(model: nn.Module, b: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(b["input_ids"], b["labels"]).loss * b["weight"]


def untied() -> nn.Module:
    model = tiny(0.1)
    model.head.weight = nn.Parameter(torch.randn(50, 16, generator=torch.Generator().manual_seed(2)) / 4)
    return model


def spiky(**changes: object) -> TrainConfig:
    return config(**({"steps": 120, "lr": 0.02, "clip": None, "checkpoint_every": 15, "schedule": "constant"} | changes))


def last(history: train.History) -> float:
    return sum(history.losses[-20:]) / 20


RECOVER = Recovery(window=16, threshold=10, skip=3)


def test_a_run_that_recovers_from_a_poisoned_batch_ends_as_good_as_a_clean_one_and_a_plain_run_does_not(tmp_path):
    bad = poisoned({70}, 1e4)
    clean, plain = fit(untied(), poisoned(set(), 1.0), spiky(), loss=weighted), fit(untied(), bad, spiky(), loss=weighted)
    recovered = fit(untied(), bad, spiky(recover=RECOVER), loss=weighted, directory=tmp_path)
    assert last(plain) > 10 * last(clean)
    assert last(recovered) == pytest.approx(last(clean), abs=0.01)
    (entry,) = recovered.recoveries
    assert (entry["step"], entry["back_to"], entry["skipped"]) == (70, 60, [68, 69, 70])
    assert entry["loss"] > 1000
    assert recovered.steps == 120


def test_a_recovered_run_is_bit_identical_to_one_that_never_saw_the_batches_left_out(tmp_path):
    bad = poisoned({40, 90}, math.nan)
    recovered = fit(untied(), bad, spiky(recover=RECOVER), loss=weighted, directory=tmp_path)
    assert [entry["skipped"] for entry in recovered.recoveries] == [[38, 39, 40], [88, 89, 90]]
    without = [i for i in range(130) if not {*range(38, 41), *range(88, 91)} & {i}]
    assert recovered.losses == fit(untied(), lambda i: bad(without[i]), spiky(), loss=weighted).losses


def test_a_spike_before_the_first_checkpoint_goes_back_to_the_start(tmp_path):
    history = fit(untied(), poisoned({1}, math.inf), spiky(recover=RECOVER), loss=weighted, directory=tmp_path)
    assert [(entry["back_to"], entry["skipped"]) for entry in history.recoveries] == [(0, [0, 1])]


def test_a_spike_right_after_a_checkpoint_does_not_trust_that_checkpoint(tmp_path):
    history = fit(untied(), poisoned({46}, math.nan), spiky(recover=RECOVER), loss=weighted, directory=tmp_path)
    assert [(entry["step"], entry["back_to"], entry["skipped"]) for entry in history.recoveries] == [(46, 30, [44, 45, 46])]


def test_a_weight_gone_bad_is_recovered_from_too(tmp_path):
    def loss(model, b):
        whole = model.embedding.weight
        return weighted(model, b | {"weight": 1.0}) + ((whole - whole.detach()).sum().sqrt() if b["weight"] == 7.0 else 0.0)

    run = spiky(recover=Recovery(threshold=1e9, skip=3))  # no finite loss is a spike
    history = fit(untied(), poisoned({44}, 7.0), run, loss=loss, directory=tmp_path)
    assert [(entry["step"], entry["loss"], entry["back_to"]) for entry in history.recoveries] == [(44, None, 30)]


def test_a_recovered_run_interrupted_and_resumed_gives_the_same_losses(tmp_path):
    bad, run = poisoned({140}, 1e4), spiky(recover=RECOVER, accumulate=2)  # a micro-batch of update 70
    whole = fit(untied(), bad, run, loss=weighted, directory=tmp_path / "whole")

    def dying(i: int) -> dict[str, torch.Tensor]:
        if i == 176:
            raise ZeroDivisionError
        return bad(i)

    with pytest.raises(ZeroDivisionError):
        fit(untied(), dying, run, loss=weighted, directory=tmp_path / "broken")
    resumed = fit(untied(), bad, run, loss=weighted, directory=tmp_path / "broken")
    assert (resumed.losses, resumed.recoveries, resumed.tokens) == (whole.losses, whole.recoveries, whole.tokens)
    assert len(whole.recoveries) == 1


def test_going_back_removes_the_checkpoints_after_it(tmp_path):
    bad = poisoned({46}, math.nan)

    def dying(i: int) -> dict[str, torch.Tensor]:
        if i == 47:  # the first batch of the second try that the first never reached
            raise ZeroDivisionError
        return bad(i)

    with pytest.raises(ZeroDivisionError):
        fit(untied(), dying, spiky(recover=RECOVER, keep=3), loss=weighted, directory=tmp_path)
    assert names(tmp_path) == ["step-00000015", "step-00000030"]


def test_where_no_checkpoint_is_old_enough_the_oldest_serves_and_only_batches_after_it_are_left_out(tmp_path):
    bad = poisoned({46}, math.nan)
    for stop in (44, 45):  # Ctrl-C saves two checkpoints close together, which push out the older ones
        with pytest.raises(KeyboardInterrupt):
            fit(
                untied(),
                lambda i, stop=stop: (signal.raise_signal(signal.SIGINT) if i == stop else None) or bad(i),
                spiky(recover=RECOVER),
                loss=weighted,
                directory=tmp_path,
            )
    assert names(tmp_path) == ["step-00000045", "step-00000046"]
    history = fit(untied(), bad, spiky(recover=RECOVER), loss=weighted, directory=tmp_path)
    assert [(entry["back_to"], entry["skipped"]) for entry in history.recoveries] == [(45, [45, 46])]


def test_recovery_can_be_switched_on_after_a_run_has_diverged(tmp_path):
    bad = poisoned({70}, math.nan)
    with pytest.raises(TrainingDiverged):
        fit(untied(), bad, spiky(), loss=weighted, directory=tmp_path)
    history = fit(untied(), bad, spiky(recover=RECOVER), loss=weighted, directory=tmp_path)
    assert (history.steps, len(history.recoveries)) == (120, 1)


def test_data_that_is_bad_for_good_stops_the_run_after_the_limit(tmp_path):
    run = spiky(recover=Recovery(window=16, skip=3, limit=2))
    with pytest.raises(TrainingDiverged, match="after 2 recoveries the loss became nan at step 36") as caught:
        fit(untied(), poisoned(set(range(40, 200)), math.nan), run, loss=weighted, directory=tmp_path)
    assert math.isnan(caught.value.loss)
    assert "step-00000030" in names(tmp_path)


def test_recovery_without_a_directory_is_refused(tmp_path):
    with pytest.raises(ValueError, match="recover goes back to a checkpoint; give fit a directory"):
        fit(tiny(), batch, config(recover=Recovery()))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window": 3}, "recover.window is 3; choose 4 or more"),
        ({"skip": 0}, "recover.skip is 0"),
        ({"threshold": 0.0}, "above 0"),
    ],
)
def test_impossible_recovery_is_refused(wrong, message, unchecked):
    with pytest.raises(ValueError, match=message):
        Recovery(**wrong)


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_resumed_run_is_bit_identical_to_the_unbroken_one(tmp_path, precision):
    run = config(checkpoint_every=5, warmup=3, accumulate=2, evaluate_every=4, precision=precision)
    whole, broken, resumed = tiny(), tiny(), tiny()
    evaluate = lambda model, step: {"r": float(torch.rand(1))}  # noqa: E731
    expected = fit(whole, batch, run, evaluate=evaluate)
    with pytest.raises(ZeroDivisionError):
        fit(broken, stop_at(17), run, evaluate=evaluate, directory=tmp_path)
    got = fit(resumed, batch, run, evaluate=evaluate, directory=tmp_path)
    assert (got.losses, got.lrs, got.evaluations, got.tokens) == (
        expected.losses,
        expected.lrs,
        expected.evaluations,
        expected.tokens,
    )
    assert same_weights(whole, resumed)
    assert resumed.head.weight is resumed.embedding.weight


def test_resuming_restores_every_random_generator(tmp_path, unchecked):
    drawn = {}

    def draw(i, stop=None):
        if i == stop:
            raise ZeroDivisionError
        drawn.setdefault(i, []).append((random.random(), np.random.rand(), float(torch.rand(1))))
        return batch(i)

    run = config(checkpoint_every=5)
    fit(tiny(), draw, run)
    with pytest.raises(ZeroDivisionError):
        fit(tiny(), lambda i: draw(i, stop=5), run, directory=tmp_path)
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    fit(tiny(), draw, run, directory=tmp_path)
    assert all(first == again for first, again in drawn.values())


def test_resumed_optimizers_of_other_kinds_are_exact_too(tmp_path):
    def two(model, config):
        matrix = torch.optim.Muon([model.embedding.weight], lr=config.lr)
        return [matrix, torch.optim.SGD([model.head.bias], lr=config.lr, momentum=0.9)]

    run = config(checkpoint_every=5)
    expected = fit(tiny(), batch, run, optimizer=two)
    with pytest.raises(ZeroDivisionError):
        fit(tiny(), stop_at(7), run, optimizer=two, directory=tmp_path)
    assert fit(tiny(), batch, run, optimizer=two, directory=tmp_path).losses == expected.losses


def test_loss_scale_goes_on_from_where_it_was(tmp_path):
    def state(name):
        path = tmp_path / name / "step-00000012" / "state.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))["dict"])

    run = config(checkpoint_every=5, precision="float16")
    fit(tiny(), batch, run, directory=tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        fit(tiny(), stop_at(7), run, directory=tmp_path / "broken")
    fit(tiny(), batch, run, directory=tmp_path / "broken")
    assert state("whole")["scaler"] == state("broken")["scaler"]


def test_tensors_that_share_memory_are_saved_apart():
    from safetensors.torch import load, save

    base = torch.arange(6.0)
    tensors = {"all": base, "part": base[2:4], "turned": base.view(2, 3).T}
    back = load(save(checkpoints._separate(tensors)))
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from test_train import batch, config, fit, tiny
fit(tiny(), batch, config(steps=1))  # what the first step imports is not worth killing
print("ready", flush=True)
fit(tiny(), batch, config(steps=500, checkpoint_every=1), directory=sys.argv[2])
"""


def newest(directory: Path) -> str:
    return max((name for name in names(directory) if name.startswith("step-")), default="") if directory.exists() else ""


def test_run_killed_at_random_moments_ends_as_the_unbroken_one(tmp_path):
    chance = random.Random(0)
    for _ in range(4):
        command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout.readline().strip() == b"ready"
        before = newest(tmp_path)
        while newest(tmp_path) == before:  # however slow the machine: a kill before anything is saved says nothing
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.communicate()
    assert "step-00000001" < names(tmp_path)[-1] < "step-00000500", "the kills came too early or too late to mean anything"
    resumed, whole = tiny(), tiny()
    got = fit(resumed, batch, config(steps=500), directory=tmp_path)
    assert got.losses == fit(whole, batch, config(steps=500)).losses
    assert same_weights(resumed, whole)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("moment", ["_sha256", "_sync_file", "_sync_folder", "_rename"])
def test_death_inside_a_save_leaves_the_previous_checkpoint(tmp_path, monkeypatch, moment):
    run = config(checkpoint_every=4)
    fit_until = stop_at(4)
    with pytest.raises(ZeroDivisionError):
        fit(tiny(), fit_until, run, directory=tmp_path)

    class Death(BaseException):
        """As a kill: nothing in the code may catch it and tidy up."""

    calls = []

    def die(*args):
        calls.append(args)
        raise Death

    original = getattr(checkpoints, moment)
    # The checksums of the resumed checkpoint are read first: let these through.
    alive = 3 if moment == "_sha256" else 0
    monkeypatch.setattr(checkpoints, moment, lambda *a: original(*a) if calls.append(a) or len(calls) <= alive else die(*a))
    with pytest.raises(Death):
        fit(tiny(), batch, run, directory=tmp_path)
    monkeypatch.undo()
    assert "step-00000004" in names(tmp_path)
    assert "step-00000008" not in names(tmp_path)
    assert fit(tiny(), batch, run, directory=tmp_path).losses == fit(tiny(), batch, config()).losses
    assert names(tmp_path) == ["step-00000008", "step-00000012"]


def test_oldest_checkpoints_are_pruned(tmp_path):
    fit(tiny(), batch, config(checkpoint_every=2, keep=3), directory=tmp_path)
    assert names(tmp_path) == ["step-00000008", "step-00000010", "step-00000012"]


@pytest.mark.parametrize("file", ["model.safetensors", "state.safetensors", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, file, damage):
    fit(tiny(), batch, config(checkpoint_every=6), directory=tmp_path)
    path = tmp_path / "step-00000012" / file
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    with pytest.warns(UserWarning, match="skipping the damaged checkpoint .*step-00000012"):
        history = fit(tiny(), batch, config(checkpoint_every=6), directory=tmp_path)
    assert history.losses == fit(tiny(), batch, config()).losses
    assert names(tmp_path) == ["step-00000006", "step-00000012"]
    assert checkpoints._damage(tmp_path / "step-00000012") is None


def test_where_every_checkpoint_is_damaged_the_run_says_that_it_begins_anew(tmp_path):
    expected = fit(tiny(), batch, config(checkpoint_every=6), directory=tmp_path)
    for folder in tmp_path.iterdir():
        (folder / "state.json").write_text("", encoding="utf-8")
    with pytest.warns(UserWarning) as caught:
        assert fit(tiny(), batch, config(checkpoint_every=6), directory=tmp_path).losses == expected.losses
    assert len(caught) == 3
    assert "no whole checkpoint is left" in str(caught[2].message)
    assert all(checkpoints._damage(folder) is None for folder in tmp_path.iterdir())


def test_damaged_newer_checkpoints_do_not_push_out_the_good_ones(tmp_path):
    fit(tiny(), batch, config(checkpoint_every=6, keep=2), directory=tmp_path)
    (tmp_path / "step-00000012" / "SHA256SUMS").unlink()
    with pytest.warns(UserWarning), pytest.raises(ZeroDivisionError):
        fit(tiny(), stop_at(9), config(checkpoint_every=2, keep=1), directory=tmp_path)
    assert names(tmp_path) == ["step-00000008"]


def test_finished_run_is_loaded_and_not_trained_again(tmp_path, capsys):
    expected = fit(tiny(), batch, config(), directory=tmp_path)
    model = tiny()
    got = fit(model, stop_at(0), config(bar=True), directory=tmp_path)
    assert got == expected
    assert "12/12 steps done" in capsys.readouterr().out


def test_resume_false_starts_anew_and_removes_the_old_run(tmp_path):
    fit(tiny(), batch, config(seed=5), directory=tmp_path)
    with pytest.raises(ZeroDivisionError):
        fit(tiny(), stop_at(4), config(checkpoint_every=3), directory=tmp_path, resume=False)
    assert names(tmp_path) == ["step-00000003"]


def test_leftovers_of_a_killed_save_are_cleaned_and_other_files_are_not(tmp_path):
    (tmp_path / ".step-00000003-abc.partial").mkdir()
    (tmp_path / ".step-00000003-abc.partial" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    fit(tiny(), batch, config(), directory=tmp_path)
    assert names(tmp_path) == ["notes.txt", "step-00000012"]


def test_checkpoint_of_another_config_is_refused_with_the_field(tmp_path):
    fit(tiny(), batch, config(), directory=tmp_path)
    with pytest.raises(ValueError, match=r"made with lr=0.01, this config has 0.02. Choose another directory, or resume=False"):
        fit(tiny(), batch, config(lr=0.02), directory=tmp_path)


def test_fields_on_watching_and_saving_may_change_between_sittings(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fit(tiny(), stop_at(7), config(checkpoint_every=4), directory=tmp_path)
    changed = config(checkpoint_every=3, evaluate_every=2, keep=5, device="cpu")
    assert fit(tiny(), batch, changed, directory=tmp_path).steps == 12


def test_checkpoint_of_an_older_version_that_lacks_a_field_is_taken_with_its_default(tmp_path, monkeypatch):
    original = checkpoints._identity
    monkeypatch.setattr(checkpoints, "_identity", lambda c: {k: v for k, v in original(c).items() if k != "decay_share"})
    expected = fit(tiny(), batch, config(), directory=tmp_path)
    monkeypatch.undo()
    assert fit(tiny(), batch, config(), directory=tmp_path).losses == expected.losses
    with pytest.raises(ValueError, match=r"made with decay_share=0.2, this config has 0.5"):
        fit(tiny(), batch, config(decay_share=0.5), directory=tmp_path)


def test_checkpoint_of_another_model_is_refused_with_the_parameter(tmp_path):
    fit(tiny(), batch, config(), directory=tmp_path)
    model = tiny()
    model.head = nn.Linear(16, 50)
    with pytest.raises(ValueError, match=r"holds another model: head.weight is absent there and torch.float32 \[50, 16\] here"):
        fit(model, batch, config(), directory=tmp_path)


def test_checkpoint_of_another_optimizer_is_refused(tmp_path):
    fit(tiny(), batch, config(), directory=tmp_path)
    with pytest.raises(ValueError, match=r"\['AdamW'\], this run has \['SGD'\]"):
        fit(tiny(), batch, config(), directory=tmp_path, optimizer=lambda m, c: torch.optim.SGD(m.parameters(), lr=c.lr))


def frozen(seed: int) -> Tiny:
    model = tiny()
    nn.init.normal_(model.embedding.weight, generator=torch.Generator().manual_seed(seed))
    model.embedding.weight.requires_grad_(False)
    return model


def test_frozen_weights_are_not_saved_but_must_be_the_same(tmp_path):
    from safetensors import safe_open

    fit(frozen(0), batch, config(), directory=tmp_path)
    with safe_open(tmp_path / "step-00000012" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {"norm.weight", "norm.bias", "head.bias"}
    assert fit(frozen(0), batch, config(), directory=tmp_path).steps == 12
    with pytest.raises(ValueError, match="other frozen weights"):
        fit(frozen(1), batch, config(), directory=tmp_path)


def test_buffers_that_training_changes_are_saved(tmp_path):
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

    def rows(i):
        return torch.randn(8, 3, generator=torch.Generator().manual_seed(i))

    first, second = model(), model()
    for net in (first, second):
        fit(net, rows, config(), loss=lambda m, x: m(x).square().mean(), directory=tmp_path)
    assert torch.equal(first[1].running_mean, second[1].running_mean)


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    fit(tiny(), batch, config(), directory=tmp_path)
    assert names(tmp_path / "step-00000012") == ["SHA256SUMS", "model.safetensors", "state.json", "state.safetensors"]
    assert not any(path.read_bytes().startswith((b"\x80", b"PK")) for path in (tmp_path / "step-00000012").iterdir())


def test_packed_state_comes_back_with_its_types():
    state = {0: (1, [2.5, None]), "t": torch.arange(3), "inner": {"flag": True, "name": "x"}}
    tensors = {}
    back = checkpoints._unpack(checkpoints._pack(state, tensors, ""), tensors)
    assert torch.equal(back.pop("t"), state.pop("t"))
    assert back == state
    assert isinstance(back[0], tuple)


def test_object_that_is_neither_tensor_nor_json_is_refused_by_name():
    with pytest.raises(TypeError, match=r"cannot save state.hook: a object"):
        checkpoints._pack({"hook": object()}, {}, "state")


# ------------------------------------------------------------------------------------------------ full disk, Ctrl-C


@pytest.mark.skipif(os.name == "nt", reason="RLIMIT_FSIZE is POSIX")
def test_full_disk_stops_with_the_way_out_and_leaves_the_earlier_checkpoint(tmp_path):
    import resource

    run = config(checkpoint_every=4)
    with pytest.raises(ZeroDivisionError):
        fit(tiny(), stop_at(5), run, directory=tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"could not save .*step-00000008.*step-00000004 is intact.* call fit again"):
            fit(tiny(), batch, run, directory=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-00000004"]
    assert fit(tiny(), batch, run, directory=tmp_path).losses == fit(tiny(), batch, config()).losses


def test_full_disk_while_writing_the_state_stops_the_same_way(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.json, "dumps", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*no earlier checkpoint exists"):
        fit(tiny(), batch, config(), directory=tmp_path)
    assert names(tmp_path) == []


def interrupted(at: int, times: int = 1):
    def press(i: int) -> dict[str, torch.Tensor]:
        for _ in range(times if i == at else 0):
            signal.raise_signal(signal.SIGINT)
        return batch(i)

    return press


def test_ctrl_c_finishes_the_step_saves_it_and_says_how_to_go_on(tmp_path, capsys):
    model = tiny().eval()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(model, interrupted(5), config(bar=True), directory=tmp_path)
    assert not model.training
    assert signal.getsignal(signal.SIGINT) is before
    assert names(tmp_path) == ["step-00000006"]
    assert "stopped after 6/12 steps; saved in" in capsys.readouterr().out
    assert fit(tiny(), batch, config(), directory=tmp_path).losses == fit(tiny(), batch, config()).losses


def test_second_ctrl_c_stops_at_once_and_names_the_last_checkpoint(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        fit(tiny(), interrupted(5, times=2), config(checkpoint_every=4), directory=tmp_path)
    assert names(tmp_path) == ["step-00000004"]
    assert "stopped after 5/12 steps; saved in" in capsys.readouterr().out


def test_ctrl_c_without_a_directory_says_what_would_have_saved_the_run(capsys):
    with pytest.raises(KeyboardInterrupt):
        fit(tiny(), interrupted(5), config())
    assert "give fit a directory" in capsys.readouterr().out
