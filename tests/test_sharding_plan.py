"""The calculator: published figures, the formulas of the other modules, and what real runs hold and send."""

import json
import math
from argparse import Namespace
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from llmcourse import show
from llmcourse.cli.app import build
from llmcourse.sharding import counting, launch, pictures, pipeline, plan, recompute
from llmcourse.sharding.scripts import rank, train
from llmcourse.transformer import Config, Transformer

TINY = Config(vocab_size=96, d_model=64, n_layers=4, n_heads=4)
ODD = Config(vocab_size=37, d_model=24, n_layers=3, n_heads=6, n_kv_heads=2, d_ff=50, tied=True)
MODEL = plan.Model.of(7.5e9)


def vectors(config: Config) -> list[counting.Vector]:
    """The flat vectors that ZeRO makes of a model in float32: its ends, then a layer each."""
    model = Transformer(config)
    layer = sum(p.numel() for p in model.blocks[0].parameters())
    ends = model.n_parameters - config.n_layers * layer
    return [counting.Vector(ends, root=True), *[counting.Vector(layer)] * config.n_layers]


def job(**options) -> plan.Job:
    return plan.Job(**({"batch": 2, "seq": 24, "precision": "float32"} | options))


# ---- published figures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "gb"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_the_zero_papers_table_comes_out(stage, gb):
    assert plan.plan(MODEL, plan.Layout(data=64, stage=stage)).states / 1e9 == pytest.approx(gb, abs=0.05)


@pytest.mark.parametrize(("stage", "times"), [(1, 4), (2, 8), (3, 100_000)])
def test_stages_save_four_eight_and_as_many_times_as_there_are_ranks(stage, times):
    whole, cut = (sum(plan.state_bytes(10**9, ranks, stage).values()) for ranks in (1, 100_000))
    assert whole / cut == pytest.approx(times, rel=2e-4)


@pytest.mark.parametrize(
    ("size", "parameters"), [("7B", 6_738_415_616), ("8B", 8_030_261_248), ("70B", 68_976_648_192), ("405B", 405_853_388_800)]
)
def test_known_sizes_have_the_parameters_that_were_published(size, parameters):
    assert plan.Model.of(size).parameters == parameters


@pytest.mark.parametrize("size", [1e6, 125e6, 1e9, 7e9, 70e9, 1e12])
def test_a_round_size_gets_a_shape_of_about_so_many_parameters(size):
    found = plan.Model.of(size)
    weights = found.n_layers * (4 * found.d_model**2 + 3 * found.d_model * found.d_ff)
    assert found.parameters == size
    assert 0.5 < weights / size < 1.5


def test_sizes_are_read_as_people_write_them():
    assert [plan.Model.of(text).parameters for text in ("350M", "1.3T", "2b", "5000")] == [350e6, 1.3e12, 2e9, 5000]
    with pytest.raises(ValueError, match="'seven' is no size"):
        plan.Model.of("seven")


# ---- the formulas of the other modules --------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "ranks", "stage"), list(product((TINY, ODD), (2, 3, 4), (1, 2, 3))))
def test_states_are_exactly_those_that_counting_predicts(config, ranks, stage):
    found = plan.plan(plan.Model.of(config), plan.Layout(data=ranks, stage=stage), job())
    expected = counting.zero_bytes(vectors(config), ranks, stage)
    assert {kind: found.memory[kind] for kind in expected} == dict(expected)


@pytest.mark.parametrize(("stage", "backwards"), list(product((1, 2, 3), (1, 3))))
def test_messages_are_those_that_counting_predicts(stage, backwards):
    found = plan.traffic(plan.Model.of(TINY), plan.Layout(data=4, stage=stage), job(micro_batches=backwards))
    calls = counting.zero_step(vectors(TINY), 4, stage, backwards)[:-1]  # without the four bytes of the norm
    assert sum(found.values()) == sum(map(counting.sent, calls))


@pytest.mark.parametrize("config", [TINY, ODD])
def test_activations_are_what_autograd_keeps(config):
    torch.manual_seed(0)
    model, ids = Transformer(config), torch.randint(config.vocab_size, (2, 25))
    kept = recompute.saved_bytes(loss, model, ids, besides=list(model.parameters()))
    assert plan.activation_bytes(plan.Model.of(config), plan.Layout(), job()) == pytest.approx(kept, rel=0.01)


def test_checkpointed_activations_are_one_stream_a_layer_and_one_layer_made_anew():
    torch.manual_seed(0)
    model, ids = recompute.attach(Transformer(TINY)), torch.randint(TINY.vocab_size, (2, 25))
    kept = recompute.saved_bytes(loss, model, ids, besides=list(model.parameters()))
    again = 4 * 2 * 24 * plan.layer_numbers(plan.Model.of(TINY))
    found = plan.activation_bytes(plan.Model.of(TINY), plan.Layout(), job(checkpointing=True))
    assert found == pytest.approx(kept + again, rel=0.01)


def loss(model: Transformer, ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize(("stages", "batches", "schedule"), list(product((1, 2, 4), (1, 4, 9), plan.SCHEDULES)))
def test_bubble_and_kept_micro_batches_are_those_of_the_schedule(stages, batches, schedule):
    orders = [pictures.SCHEDULES[schedule](stages, batches, stage) for stage in range(stages)]
    assert plan.bubble(stages, batches) == pytest.approx(pipeline.bubble(pipeline.play(orders)))
    if stages > 1:
        assert plan.in_flight(batches, stages, schedule) == max(map(pipeline.in_flight, orders))


def test_interleaving_divides_the_work_between_two_waits():
    assert plan.bubble(4, 8, chunks=2) == pytest.approx(3 / 19)


# ---- what a plan promises ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("strategy", "gpus"), list(product(plan.STRATEGIES[1:], (1, 2, 6, 8, 64, 4096))))
def test_a_layout_uses_every_gpu_and_can_be_planned(strategy, gpus):
    model = plan.Model.of("8B")
    found = plan.layout(strategy, gpus, model)
    assert found.ranks == gpus
    assert plan.plan(model, found).total > 0


@pytest.mark.parametrize("strategy", plan.STRATEGIES)
def test_the_largest_model_just_fits(strategy):
    layout, work, device = plan.layout(strategy, 64), plan.Job(checkpointing=True), plan.Device(gb=40)
    most = plan.largest(layout, work, device)
    assert plan.plan(plan.Model.of(most), plan.layout("single", 1), work, plan.Device(gb=1e9)).fits
    assert plan._plan(plan.Model.of(most), layout, work, device).fits
    assert not plan._plan(plan.Model.of(most * 1.1), layout, work, device).fits


def test_zero_three_grows_with_the_ranks_and_ddp_does_not():
    sizes = {name: [plan.largest(plan.layout(name, n)) for n in (8, 1024)] for name in ("ddp", "zero3")}
    assert sizes["ddp"][0] == sizes["ddp"][1]
    assert sizes["zero3"][1] > 2 * sizes["zero3"][0]


def test_frozen_weights_keep_no_gradient_and_no_optimizer():
    found = plan.plan(MODEL, plan.Layout(), plan.Job(trained=0.01)).memory
    assert found["gradients"] + found["optimizer"] == pytest.approx(0.14 * 7.5e9)
    assert found["parameters"] == 2 * 7.5e9


def test_stage_three_sends_half_as_much_again_as_ddp():
    sent = [sum(plan.traffic(MODEL, plan.Layout(data=64, stage=stage), plan.Job()).values()) for stage in (0, 1, 2, 3)]
    assert [n / sent[0] for n in sent] == pytest.approx([1, 1, 1, 1.5])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: plan.Layout(stage=4), "no stage 4"),
        (lambda: plan.Layout(data=0), "data=0"),
        (lambda: plan.Job(precision="int8"), "precision='int8' is unknown; choose one of mixed"),
        (lambda: plan.Job(seq=0), "seq=0"),
        (lambda: plan.Job(trained=2), "trained=2"),
        (lambda: plan.Device(gb=0), "gb=0"),
        (lambda: plan.Model.of(10), "cannot be planned"),
        (lambda: plan.layout("zero4", 8), "'zero4' is unknown; choose one of single"),
        (lambda: plan.layout("ddp", 0), "gpus=0"),
        (lambda: plan.bubble(0, 1), "stages=0"),
        (lambda: plan.collectives(5), "no stage 5"),
        (lambda: plan.plan(plan.Model.of("8B"), plan.Layout(tensor=16)), "does not divide the 8 key heads"),
        (lambda: plan.plan(plan.Model.of("8B"), plan.Layout(pipeline=64)), "more than the 32 layers"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


# ---- real runs --------------------------------------------------------------------------------------------------------

RUN = ["ddp", "zero1", "zero2", "zero3", "tensor", "sequence", "gpipe", "1f1b", "zero3+tensor", "torch-ddp", "fsdp2"]
FLAGGED = ["ddp:late", "zero3:mixed"]
STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where four ranks leave checkpoints for two, and these for one."""
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def run(folder) -> list[dict]:
    """What four ranks report of every strategy, a step each in turns, in one launch."""
    options = {"strategy": RUN + FLAGGED, "steps": STEPS, "bucket": 2**16, "save": folder / "four", "save_at": 1}
    return launch.run("train", ranks=4, patience=300, quiet=True, **options).results


@pytest.fixture(scope="module")
def alone() -> list[float]:
    """The losses of the same training in this process, without any strategy."""
    torch.manual_seed(0)
    model, options = Transformer(TINY), Namespace(seed=0, batch=12, vocab=96, seq=32)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for step in range(1, STEPS + 1):
        ids, targets = train.global_batch(options, step, torch.device("cpu"))
        loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", RUN)
def test_every_strategy_trains_as_one_process_does(run, alone, name):
    for report in run:
        assert report[name]["losses"] == pytest.approx(alone, rel=1e-5)


def test_saved_on_four_ranks_a_run_goes_on_on_two_and_then_on_one_with_the_same_losses(run, folder):
    options = {"load": folder / "four" / "zero3", "save": folder / "two", "save_at": 2}
    two = launch.run("train", ranks=2, patience=300, quiet=True, strategy="zero3:resumed", steps=STEPS, **options).results
    words = ["--strategy", "zero2:resumed", "--steps", str(STEPS), "--load", str(folder / "two" / "zero3-resumed")]
    with rank.alone() as here:
        one = train.train(train.parsed(words), here)["zero2:resumed"]
    wanted = run[0]["zero3"]["losses"]
    assert two[1]["zero3:resumed"]["losses"] == pytest.approx(wanted[1:], rel=1e-5)
    assert one["losses"] == pytest.approx(wanted[2:], rel=1e-5)
    assert abs(wanted[1] - wanted[0]) > 0.01  # a run that began anew would be seen


def test_every_zero_strategy_and_no_other_leaves_a_checkpoint(run, folder):
    assert sorted(path.name for path in (folder / "four").iterdir()) == ["zero1", "zero2", "zero3", "zero3-mixed"]


def test_buckets_are_sent_while_gradients_are_missing_and_late_ones_are_not(run):
    for report in run:
        early, late = report["ddp"]["timeline"], report["ddp:late"]["timeline"]
        assert len(early) == len(late) > 3
        assert sum(bucket["begins"] < early[-1]["full"] for bucket in early) == len(early) - 1
        assert all(bucket["begins"] >= max(other["full"] for other in late) for bucket in late)
        assert all(bucket["full"] <= bucket["begins"] < bucket["ends"] for bucket in early + late)


def test_a_flag_is_for_one_strategy_alone(run):
    assert run[0]["zero3:mixed"]["bytes"]["parameters"] == run[0]["zero3"]["bytes"]["parameters"] / 2
    assert run[0]["zero3:mixed"]["losses"] == pytest.approx(run[0]["zero3"]["losses"], abs=0.02)
    assert run[0]["zero3:mixed"]["losses"] != run[0]["zero3"]["losses"]


def test_all_steps_but_the_measured_one_are_timed_of_every_strategy(run):
    assert {len(report["seconds"]) for report in run[0].values()} == {STEPS - 1}


@pytest.mark.parametrize("name", RUN)
def test_states_of_the_fullest_rank_are_exactly_as_planned(run, name):
    for kind in ("parameters", "gradients", "optimizer"):
        assert max(report[name]["bytes"][kind] for report in run) == run[0][name]["planned"][kind]


@pytest.mark.parametrize("name", RUN)
def test_activations_of_the_fullest_rank_are_as_planned_within_five_percent(run, name):
    most = max(report[name]["bytes"]["activations"] for report in run)
    assert most == pytest.approx(run[0][name]["planned"]["activations"], rel=0.05)


@pytest.mark.parametrize("name", RUN)
def test_the_busiest_rank_sends_as_many_bytes_as_planned(run, name):
    most = max(report[name]["sent"] for report in run)
    assert most == pytest.approx(run[0][name]["planned"]["sent"], abs=64)  # norms and losses: a few numbers more


def test_a_real_pipelines_timeline_can_be_drawn(run):
    fig = pictures.measured(run[0]["1f1b"]["timeline"])
    assert len(fig.axes[0].patches) == 4 * 2 * 4  # four stages, forward and backward of four micro-batches
    assert "measured" in fig.axes[0].get_title(loc="left")


# ---- the command and the pictures -------------------------------------------------------------------------------------


def command(*words: str):
    return CliRunner().invoke(build(), ["plan", *words])


def test_the_command_prints_a_row_for_every_strategy():
    printed = command("7B", "--gpus", "8", "--gb", "80")
    assert printed.exit_code == 0
    assert all(f"\n{name} " in printed.output for name in plan.STRATEGIES)


def test_the_command_can_print_json_of_one_strategy():
    printed = command("7.5B", "--gpus", "64", "--strategy", "zero2", "--json")
    (row,) = json.loads(printed.output)
    assert row["strategy"] == "zero2"
    assert row["parameters"] + row["gradients"] + row["optimizer"] == pytest.approx(16.64, abs=0.01)


def test_the_command_refuses_in_words():
    printed = command("7B", "--strategy", "zero9")
    assert printed.exit_code == 1 and "zero9" in printed.stderr and "Traceback" not in printed.output


@pytest.mark.parametrize("values", list(show.ends(pictures.MEMORY, pictures.memory)), ids=str)
def test_memory_can_be_drawn_at_both_ends_of_every_control(values):
    fig = pictures.memory(**values)
    assert f"{values['size']} on {values['gpus']}" in fig.axes[0].get_title(loc="left")
    widths = math.fsum(bar.get_width() for bar in fig.axes[0].patches)
    plans = pictures._plans(**values)
    assert widths == pytest.approx(math.fsum(found.total for found in plans.values()) / 1e9)
    assert "zero3" in pictures.memory_alt(**values)


@pytest.mark.parametrize("values", list(show.ends(pictures.TIMELINE, pictures.timeline)), ids=str)
def test_the_timeline_can_be_drawn_at_both_ends_of_every_control(values):
    idle = f"{plan.bubble(values['stages'], values['batches']):.0%}"
    assert f"{idle} of the time idle" in pictures.timeline(**values).axes[0].get_title(loc="left")
    assert idle in pictures.timeline_alt(**values)


def test_the_ring_is_drawn_with_a_panel_for_every_state():
    assert len(pictures.ring(torch.ones(5, 3, 3)).axes) == 5
