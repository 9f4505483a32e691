"""Model parallel: tensor, sequence and pipeline parallelism, recomputation, ZeRO-3 × TP, against one process and against torch.

Ranks do their work in `sharding_model_ranks.py`, all of them out of one launch; the tests here read what came out.
"""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from llmcourse.sharding import mesh, pipeline, recompute, tensor
from llmcourse.sharding.pipeline import Action, Span
from llmcourse.transformer import Config, Transformer
from tests.sharding_processes import found_by, launch

TINY = {"vocab_size": 31, "d_model": 16, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "d_ff": 24}
BOTH = pytest.mark.parametrize("kind", ["tensor", "sequence"])
SCHEDULES = pytest.mark.parametrize("name", ["gpipe", "1f1b"])
# After 20 AdamW steps in float32; losses are about 4.
LOSSES, LOGITS, NORMS = 1e-5, 1e-4, 1e-4


# --- launched once -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    launch("tests.sharding_model_ranks", folder, [2, 4])
    return folder


@pytest.fixture(scope="session", params=[2, 4], ids=["2 ranks", "4 ranks"])
def found(request, folder) -> dict:
    """What came out on so many ranks; errors are the largest of any of them, so the first rank's word is enough."""
    return found_by(folder, request.param)[0] | {"ranks": request.param}


@pytest.fixture
def found4(found) -> dict:
    """What needs four ranks."""
    if found["ranks"] != 4:
        pytest.skip("a grid of 2 × 2 needs 4 ranks")
    return found


def assert_equal(errors: dict) -> None:
    limits = {"losses": LOSSES, "logits": LOGITS, "norms": NORMS}
    assert {"losses", "logits"} <= errors.keys() and all(errors[key] <= limits[key] for key in errors), errors


# --- tensor and sequence parallelism -----------------------------------------------------------------------------------


@BOTH
def test_tensor_parallel_training_equals_one_process(found, kind):
    """Losses, gradient norms and logits over 20 AdamW steps, and so in all tests below that say nothing else."""
    assert_equal(found["tensor"][kind]["single"])


@BOTH
def test_tensor_parallel_training_equals_parallelize_module(found, kind):
    """The same plan in torch's own words, sequence parallelism and parallel loss included."""
    assert_equal(found["tensor"][kind]["torch"])


@BOTH
def test_whole_weights_after_tensor_parallel_training_equal_those_of_one_process(found, kind):
    """Gathered by name, every piece in its place."""
    assert found["tensor"][kind]["state"] <= 1e-4


@BOTH
def test_uneven_tied_normalised_clipped_frozen_and_accumulated_at_once(found, kind):
    """Sizes the ranks do not divide, targets that do not count, some blocks recomputed; 8 steps of two passes."""
    assert_equal(found["tensor_odd"][kind])


def test_the_loss_went_down(found):
    """Else equal losses would say little."""
    first, last = found["progress"]
    assert last < first - 0.3


@BOTH
def test_gradients_of_biases_and_of_query_and_key_norms_are_complete(found, kind):
    """A row-parallel layer's bias is added once, and what each rank saw of a whole weight is summed."""
    assert max(found["biases"][kind].values()) < 1e-6
    assert any("down.bias" in name for name in found["biases"][kind]) and any("q_norm" in name for name in found["biases"][kind])


def test_column_then_row_parallel_equals_the_two_layers(found):
    """Output, and the gradients of the input and of the bias."""
    assert max(found["layers"].values()) < 1e-6


def test_vocabulary_parallel_loss_equals_cross_entropy_on_logits_that_overflow(found):
    """Value and gradient, with places that do not count and logits whose exponential is no float32."""
    assert found["cross_entropy"]["loss"] < 1e-6 and found["cross_entropy"]["gradient"] < 1e-6


def test_vocabulary_parallel_loss_sends_two_messages(found):
    """The largest logit; then the sum of exponentials and the target's logit together."""
    assert found["cross_entropy"]["messages"] == 2


@BOTH
def test_messages_of_a_tensor_parallel_step_are_those_of_the_formula(found, kind):
    """Every call of a step, with its bytes."""
    counted = found["tensor_counts"][kind]
    assert counted["equal"] and counted["mine"] == counted["theory"]


def test_sequence_parallelism_sends_the_bytes_of_tensor_parallelism(found):
    """An all-reduce is a reduce-scatter and an all-gather; only the norms' gradients come on top."""
    plain, cut = (found["tensor_counts"][kind]["sent"] for kind in ("tensor", "sequence"))
    norms, n = found["sizes"]["norms"] * 4, found["ranks"]
    assert cut == pytest.approx(plain + 2 * (n - 1) / n * norms)


@BOTH
def test_a_rank_holds_its_share_of_every_matrix_and_all_norms(found, kind):
    """Numbers of parameters on each rank, exactly."""
    total, norms = found["sizes"]["total"], found["sizes"]["norms"]
    assert set(found["tensor_counts"][kind]["numbers"]) == {(total - norms) / found["ranks"] + norms}


def test_sequence_parallelism_keeps_activations_between_the_parts_for_its_own_places_only(found):
    """A layer's 4 d + 2 numbers a place, the last norm's 2 d + 1, float32: (n − 1)/n of them less, within 5 %."""
    sizes, n = found["sizes"], found["ranks"]
    numbers = sizes["layers"] * (4 * sizes["d"] + 2) + 2 * sizes["d"] + 1
    kept = {kind: found["tensor_counts"][kind]["kept"] for kind in ("tensor", "sequence")}
    assert kept["tensor"] - kept["sequence"] == pytest.approx(4 * sizes["places"] * numbers * (n - 1) / n, rel=0.05)


@BOTH
def test_recomputation_keeps_fewer_activations_of_a_cut_model(found, kind):
    """Messages are sent again instead."""
    assert found["tensor_counts"][kind]["kept_recomputed"] < 0.6 * found["tensor_counts"][kind]["kept"]


def test_whole_weights_come_out_of_a_cut_model_and_go_into_another_unchanged(found):
    """Uneven and tied ones too."""
    assert found["whole_weights"] == {"out": 0.0, "in": 0.0}


def test_a_sequence_that_does_not_divide_is_refused(found):
    """With the number it must be a multiple of."""
    assert f"seq=7 cannot be cut into {found['ranks']} equal parts; pad it" in found["tensor_errors"]["uneven"]


def test_fewer_key_heads_than_ranks_are_refused(found):
    """With the most ranks there may be."""
    assert "n_kv_heads=1 cannot be shared" in found["tensor_errors"]["heads"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"positions": "alibi"}, "alibi"),
        ({"n_experts": 4}, "n_experts"),
        ({"dropout": 0.1}, "dropout"),
        ({"n_encoder_layers": 1}, "encoder"),
        ({"head": "none"}, "head"),
    ],
)
def test_models_that_cannot_be_cut_are_refused_by_name(change, named):
    """Before anything has been changed."""
    model = Transformer(Config(**TINY | change))
    with pytest.raises(ValueError, match=named):
        tensor.parallelize(model)
    assert not tensor.cuts(model)


def test_shares_differ_by_at_most_one_and_add_up():
    """The first ranks get one more."""
    for n in range(4, 30):
        given = tensor.shares(n, 4)
        assert sum(given) == n and max(given) - min(given) <= 1 and sorted(given, reverse=True) == list(given)


def test_pieces_of_a_cut_make_the_whole_again():
    """Along any axis, of any widths."""
    x = torch.randn(5, 7)
    for dim, widths in ((0, (2, 2, 1)), (1, (4, 3)), (-1, (1, 6))):
        cut = tensor.Cut(dim, widths)
        assert torch.equal(torch.cat([cut.piece(x, rank) for rank in range(len(widths))], dim), x)


def test_sums_of_vocabulary_shards_give_cross_entropy_without_any_wire():
    """Added up over the ranks, log Σ exp(z − top) − (z − top)[target] is the loss at each place."""
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 11), torch.randint(11, (2, 5))
    top, cut = logits.amax(-1), tensor.Cut(-1, (4, 4, 3))
    total, picked = sum(tensor.shard_sums(cut.piece(logits, r), targets, 4 * r, top) for r in range(3))
    assert_close((total.log() - picked).flatten(), F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none"))


def test_tensor_parallelism_on_one_rank_needs_no_launch():
    """Without torch.distributed the cut model gives the same logits and gradients' norm."""
    torch.manual_seed(0)
    model = Transformer(Config(**TINY))
    ids = torch.arange(24).view(2, 12)
    logits = model(ids).detach()
    strategy = tensor.TensorParallel(model, sequence=True, clip=1.0)
    assert_close(strategy.logits(ids), logits)
    loss = strategy.loss(ids, ids)
    assert_close(loss, F.cross_entropy(logits.flatten(0, 1), ids.flatten()))
    loss.backward()
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert_close(strategy.step(), norm)


# --- pipeline ----------------------------------------------------------------------------------------------------------


@SCHEDULES
def test_pipeline_training_equals_one_process(found, name):
    """Losses, gradient norms and logits over 20 AdamW steps, 4 micro-batches."""
    assert_equal(found["pipeline"][name]["single"])


@SCHEDULES
def test_pipeline_training_equals_torch_pipelining(found, name):
    """torch's ScheduleGPipe and Schedule1F1B on the same stages."""
    assert_equal(found["pipeline"][name]["torch"])


@SCHEDULES
def test_uneven_tied_clipped_frozen_accumulated_and_recomputed_stages_at_once(found, name):
    """5 layers, 3 micro-batches of 8 sequences, targets that do not count."""
    assert_equal({key: value for key, value in found["pipeline_odd"][name].items() if key != "tie"})


@SCHEDULES
def test_tied_ends_stay_equal_to_the_bit(found, name):
    """Both add the same two gradients, so both take the same steps."""
    assert found["pipeline_odd"][name]["tie"] == 0


def test_messages_of_a_pipeline_step_are_those_of_the_formula(found):
    """On every stage, with uneven micro-batches and tied ends."""
    assert found["pipeline_counts"]["equal"] and found["pipeline_counts"]["mine"] == found["pipeline_counts"]["theory"]


def test_stages_hold_the_model_once(found):
    """All their parameters together are the model's."""
    assert sum(found["pipeline"]["gpipe"]["numbers"]) == found["pipeline"]["total"]


def test_stages_store_as_many_micro_batches_as_the_schedule_says(found):
    """GPipe all 4; 1F1B at most as many as there are stages from here to the end."""
    stages = range(found["ranks"])
    assert found["pipeline"]["gpipe"]["stored"] == [4] * found["ranks"]
    assert found["pipeline"]["1f1b"]["stored"] == [min(4, found["ranks"] - stage) for stage in stages]


def recorded(found, name) -> list[list[Span]]:
    return [[Span(Action(*action), *times) for action, *times in stage] for stage in found["pipeline"][name]["timeline"]]


@SCHEDULES
def test_recorded_actions_never_overlap_on_a_stage_and_never_precede_their_input(found, name):
    """What really happened obeys the order, on one clock."""
    spans = recorded(found, name)
    ends = {(stage, span.action): span.end for stage, row in enumerate(spans) for span in row}
    for stage, row in enumerate(spans):
        assert all(before.end <= after.start for before, after in pairwise(row))
        for span in row:
            source = pipeline._input_of(stage, span.action, len(spans))
            assert source is None or ends[source] <= span.start


@SCHEDULES
def test_the_bubble_in_steps_of_what_was_run_is_the_formula(found, name):
    """The recorded orders, at equal costs, idle (p − 1) / (m + p − 1) of the time; measured in seconds it is a fraction."""
    spans = recorded(found, name)
    played = pipeline.play([[span.action for span in row] for row in spans])
    assert pipeline.bubble(played) == pytest.approx(pipeline.bubble_fraction(found["ranks"], 4))
    assert 0 <= pipeline.bubble(spans) < 1


@pytest.mark.parametrize("schedule", [pipeline.gpipe, pipeline.one_f_one_b])
@pytest.mark.parametrize(("stages", "batches"), [(1, 1), (2, 1), (2, 5), (3, 4), (4, 4), (4, 16), (8, 3)])
def test_schedules_do_everything_once_and_idle_as_the_formula_says(schedule, stages, batches):
    """Also with fewer micro-batches than stages; whatever a forward and a backward cost."""
    orders = [schedule(stages, batches, stage) for stage in range(stages)]
    everything = {Action(kind, i) for kind in "FB" for i in range(batches)}
    assert all(set(order) == everything and len(order) == 2 * batches for order in orders)
    for back in (1.0, 2.0, 3.5):
        played = pipeline.play(orders, lambda _, action, back=back: 1.0 if action.kind == "F" else back)
        assert pipeline.bubble(played) == pytest.approx(pipeline.bubble_fraction(stages, batches))


@pytest.mark.parametrize(("stages", "batches"), [(2, 5), (4, 2), (4, 16)])
def test_1f1b_stores_no_more_micro_batches_than_stages(stages, batches):
    """min(m, p − s) against GPipe's m."""
    for stage in range(stages):
        assert pipeline.in_flight(pipeline.one_f_one_b(stages, batches, stage)) == min(batches, stages - stage)
        assert pipeline.in_flight(pipeline.gpipe(stages, batches, stage)) == batches


def test_a_slow_stage_makes_all_others_wait():
    """With one stage of three times the cost, the bubble is larger than the formula for equal stages."""
    orders = [pipeline.gpipe(3, 4, stage) for stage in range(3)]
    played = pipeline.play(orders, lambda stage, action: 3.0 if stage == 1 else 1.0)
    assert pipeline.bubble(played) > 1.5 * pipeline.bubble_fraction(3, 4)


def test_orders_that_wait_for_each_other_are_refused():
    """With the stages and the actions at which they hang."""
    with pytest.raises(ValueError, match=r"stage 0 at .*stage 1 at .*wait for each other"):
        pipeline.play([[Action("B", 0), Action("F", 0)], [Action("F", 0), Action("B", 0)]])


def test_a_pipeline_of_one_stage_needs_no_launch():
    """Its loss and gradients, from uneven micro-batches, are those of one ordinary pass."""
    torch.manual_seed(0)
    model, ids = Transformer(Config(**TINY, tied=True)), torch.arange(60).view(5, 12) % 31
    loss = F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
    expected = torch.autograd.grad(loss, list(model.parameters()))
    strategy = pipeline.Pipeline(model, microbatches=3)
    assert_close(strategy.forward_backward(ids, ids), loss.detach())
    grads = {name: p.grad for name, p in strategy.stage.named_parameters()}
    for (name, _), gradient in zip(model.named_parameters(), expected, strict=True):
        assert_close(grads[name], gradient, rtol=1e-4, atol=1e-6)
    assert len(strategy.timeline()[0]) == 6


def test_a_recomputed_stage_keeps_little_more_than_its_blocks_inputs():
    """Less than half of what an ordinary stage keeps."""
    model, ids = Transformer(Config(**TINY)), torch.arange(24).view(2, 12)
    plain, again = (recompute.saved_bytes(pipeline.Stage(model, 2, 0, recompute=on), ids) for on in (False, True))
    assert again < plain / 2


def test_fewer_layers_than_stages_are_refused():
    """With the most stages there may be."""
    with pytest.raises(ValueError, match="n_layers=3 cannot be shared by 4 ranks"):
        pipeline.Stage(Transformer(Config(**TINY)), 4, 0)


def test_fewer_sequences_than_micro_batches_are_refused():
    """Empty micro-batches would be silent nonsense."""
    strategy = pipeline.Pipeline(Transformer(Config(**TINY)), microbatches=4)
    with pytest.raises(ValueError, match="batch=3 cannot be shared"):
        strategy.forward_backward(torch.ones(3, 4, dtype=torch.long), torch.ones(3, 4, dtype=torch.long))


def test_models_that_cannot_be_staged_are_refused_by_name():
    """Learned positions are known to the first stage only."""
    with pytest.raises(ValueError, match="learned"):
        pipeline.Stage(Transformer(Config(**TINY, positions="learned", max_positions=16)), 2, 0)


# --- ZeRO-3 × tensor ---------------------------------------------------------------------------------------------------


@BOTH
def test_zero3_times_tensor_training_equals_one_process(found4, kind):
    """On a grid of 2 × 2, with the same global batch."""
    assert_equal(found4["mesh"][kind]["single"])
    assert found4["mesh"][kind]["state"] <= 1e-4


@BOTH
def test_zero3_times_tensor_training_equals_fully_shard_on_parallelize_module(found4, kind):
    """torch's own composition on a device mesh."""
    assert_equal(found4["mesh"][kind]["torch"])


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_the_grid_with_uneven_tied_clipped_frozen_accumulated_and_recomputed_parts(found4, stage):
    """Under each stage of ZeRO, with and without sequence parallelism."""
    assert_equal(found4["mesh_odd"][stage])


@BOTH
def test_a_rank_of_the_grid_holds_its_share_of_its_share(found4, kind):
    """Bytes of parameters and of AdamW's two moments, exactly: matrices ÷ 4, norms ÷ 2."""
    total, norms = found4["sizes"]["total"], found4["sizes"]["norms"]
    mine, held = 4 * ((total - norms) / 4 + norms / 2), found4["mesh"][kind]["bytes"]
    assert set(held["parameters"]) == {mine} and set(held["optimizer"]) == {2 * mine} and set(held["gradients"]) == {0}


def test_a_grid_has_every_rank_once_and_full_rows():
    """Neighbours form a row; what does not divide is refused."""
    assert mesh.grid(6, 2) == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(ValueError, match="6 ranks do not form rows of tensor=4"):
        mesh.grid(6, 4)


def test_a_batch_that_cannot_be_dealt_equally_is_refused():
    """Each row's mean weighs the same, so each row must have as many sequences."""
    where = mesh.Mesh(None, None, row=1, rows=2)
    assert where.part(torch.arange(6)).tolist() == [3, 4, 5]
    with pytest.raises(ValueError, match="batch=5 cannot be dealt equally to 2 rows"):
        where.part(torch.arange(5))


# --- recomputation -----------------------------------------------------------------------------------------------------


def gradients(model: nn.Module, ids: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(7)  # for dropout
    model.zero_grad()
    F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_gradients_with_recomputation_are_the_same_to_the_bit(every):
    """Dropout included: the second run draws the same numbers, and leaves the generator as it was."""
    torch.manual_seed(0)
    model, ids = Transformer(Config(**TINY, dropout=0.2, attention_dropout=0.2)), torch.arange(24).view(2, 12)
    plain, after = gradients(model, ids), torch.rand(1)
    again, after_again = gradients(recompute.attach(model, every), ids), torch.rand(1)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True)) and after == after_again


def test_the_names_of_weights_survive_and_detach_restores_the_blocks():
    """A checkpoint fits before and after."""
    model = Transformer(Config(**TINY))
    names = list(model.state_dict())
    recompute.attach(model)
    assert list(model.state_dict()) == names and "forward" in vars(model.blocks[0])
    recompute.detach(model)
    assert all("forward" not in vars(block) for block in model.blocks)


def test_a_recomputed_block_runs_once_more_and_only_then():
    """Once forward, once when the backward pass comes by."""
    runs = []

    def function(x):
        runs.append(torch.is_grad_enabled())
        return x.sin().exp()

    x = torch.randn(3, requires_grad=True)
    y = recompute.checkpoint(function, x)
    assert runs == [True]
    y.sum().backward()
    assert runs == [True, True]
    assert_close(x.grad, x.detach().cos() * x.detach().sin().exp())


def test_without_gradients_nothing_is_prepared_for_a_second_run():
    """`no_grad` runs the function as it is."""
    with torch.no_grad():
        assert recompute.checkpoint(lambda x: x * 2, torch.ones(1)).grad_fn is None


def test_parameters_get_gradients_although_the_input_needs_none():
    """The mistake of the older way to checkpoint, which returned nothing here."""
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    recompute.checkpoint(lambda x: layer(x).tanh(), x).sum().backward()
    mine = layer.weight.grad.clone()
    layer.zero_grad()
    layer(x).tanh().sum().backward()
    assert torch.equal(mine, layer.weight.grad)


def test_checkpoints_within_checkpoints_and_several_outputs():
    """Nested structures of tensors come in, tuples go out."""

    def inner(pair):
        return pair[0].sin() * pair[1].exp(), pair[1].cos()

    def outer(x, y):
        a, b = recompute.checkpoint(inner, (x, y))
        return (a * b).tanh()

    x, y = torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True)
    mine = torch.autograd.grad(recompute.checkpoint(outer, x, y).sum(), (x, y))
    a, b = inner((x, y))
    assert_close(mine, torch.autograd.grad((a * b).tanh().sum(), (x, y)))


def test_the_backward_pass_may_come_twice():
    """With `retain_graph` the block runs again for each."""
    x = torch.randn(3, requires_grad=True)
    y = recompute.checkpoint(lambda x: x.sin().exp(), x).sum()
    first = torch.autograd.grad(y, x, retain_graph=True)
    assert_close(torch.autograd.grad(y, x), first)


def test_the_second_run_is_under_the_autocast_of_the_first():
    """The backward pass runs outside it, as it should, and yet the tensors fit."""
    layer, x = nn.Linear(8, 8), torch.randn(2, 8, requires_grad=True)
    found = []
    for run in (lambda f, x: f(x), recompute.checkpoint):
        with torch.autocast("cpu", torch.bfloat16):
            y = run(lambda x: layer(x).tanh() @ layer.weight, x)
        found.append(torch.autograd.grad(y.float().sum(), (x, layer.weight)))
    assert y.dtype == torch.bfloat16 and all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_function_that_differs_when_run_again_is_refused():
    """Else its gradients would be silently wrong."""
    runs = []

    def fickle(x):
        runs.append(1)
        return x.sin().exp() if len(runs) == 1 else x.sin()

    with pytest.raises(ValueError, match="not repeatable"):
        recompute.checkpoint(fickle, torch.randn(3, requires_grad=True)).sum().backward()


def test_a_recomputed_model_keeps_one_stream_a_block():
    """Measured bytes fall, for the blocks, to their inputs: batch · seq · width numbers each."""
    model, ids = Transformer(Config(**TINY)), torch.arange(24).view(2, 12)

    def kept():
        return recompute.saved_bytes(lambda: model.hidden(ids), besides=[ids])

    plain = kept()
    recompute.attach(model)
    stream, angles = 2 * 12 * 16 * 4, 2 * 12 * 4 * 4
    assert plain > 3 * 10 * stream and kept() == 3 * stream + angles


def test_saved_bytes_counts_each_piece_of_memory_once_and_no_parameters():
    """x² keeps x once; W x keeps x and not W."""
    x, layer = torch.randn(10, requires_grad=True), nn.Linear(10, 3, bias=False)
    assert recompute.saved_bytes(lambda: x * x) == 40
    assert recompute.saved_bytes(lambda: layer(x.view(1, 10))) == 40
    assert recompute.saved_bytes(lambda: x * x, besides=[x]) == 0


@pytest.mark.parametrize(
    ("model", "every", "named"), [(nn.Linear(2, 2), 1, "blocks"), (Transformer(Config(**TINY)), 0, "every=0")]
)
def test_recomputation_of_what_cannot_be_is_refused(model, every, named):
    """A model without blocks, a step below 1."""
    with pytest.raises(ValueError, match=named):
        recompute.attach(model, every)
