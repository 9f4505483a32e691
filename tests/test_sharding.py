"""Data parallelism: shards and rings on paper; then, on 1, 2, 3 and 4 real ranks, everything that must be equal or counted.

All ranks come out of one launch (see sharding_data_ranks.py, which does the work); the tests read what they found.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from llmcourse.sharding import checkpoint, collectives, counting, ddp, shards, zero
from tests.sharding_processes import found_by, launch

ALL = pytest.mark.parametrize("n", [4, 3, 2, 1])
SEVERAL = pytest.mark.parametrize("n", [4, 3, 2])
STAGES = pytest.mark.parametrize("stage", [1, 2, 3])
STATED = 5e-6  # float32 after 20 steps: sums of other orders differ by about 1e-6
RANKS_AND_SIZES = [(ranks, numel) for ranks in range(1, 6) for numel in (1, 2, 7, 12, 30)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Where the ranks write; four of them come first, since they leave checkpoints for fewer."""
    folder = tmp_path_factory.mktemp("sharding")
    launch("tests.sharding_data_ranks", folder, [4, 3, 2, 1])
    return folder


@pytest.fixture(scope="session")
def ranks(folder) -> Callable[[int], list[dict]]:
    """ranks(n): what each of n ranks found."""
    return cache(partial(found_by, folder))


# --- shards on paper -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "numel"), RANKS_AND_SIZES)
def test_shards_of_all_ranks_put_together_are_the_tensors(n, numel):
    """Flatten, pad, cut; then the inverse gives every tensor back, padding gone."""
    tensors = [torch.randn(numel), torch.randn(numel, 3), torch.randn(())]
    cut = [shards.shard(shards.flatten(tensors), rank, n) for rank in range(n)]
    assert {len(piece) for piece in cut} == {shards.shard_size(4 * numel + 1, n)}
    for back, tensor in zip(shards.unshard(cut, [t.shape for t in tensors]), tensors, strict=True):
        assert torch.equal(back, tensor)


def test_padding_is_zeros_and_never_a_whole_rank_too_much():
    """10 numbers on 4 ranks become 12; 12 stay 12."""
    assert_close(shards.pad(torch.ones(10), 4), torch.tensor([1.0] * 10 + [0.0] * 2))
    assert shards.padded_size(12, 4) == 12


@pytest.mark.parametrize(("n", "numel"), RANKS_AND_SIZES)
def test_pieces_say_where_each_tensor_lies_in_a_shard(n, numel):
    """Filled with their own index, the tensors are found by the slices, and nothing else is."""
    sizes = [numel, 0, 3, numel + 2]
    flat = shards.flatten([torch.full((size,), i + 1.0) for i, size in enumerate(sizes)])
    for rank in range(n):
        mine = shards.shard(flat, rank, n)
        for i, place in enumerate(shards.pieces(sizes, rank, n)):
            assert (mine[place] == i + 1).sum() == (mine == i + 1).sum() == place.stop - place.start


@pytest.mark.parametrize(("n", "numel"), RANKS_AND_SIZES)
@pytest.mark.parametrize("old", [1, 2, 3, 4])
def test_overlaps_rebuild_the_shards_of_another_number_of_ranks(n, numel, old):
    """New shards filled from old ones equal shards cut from the whole."""
    flat = torch.randn(numel)
    for rank in range(n):
        mine = torch.zeros(shards.shard_size(numel, n))
        for old_rank, source, target in shards.overlaps(numel, old, rank, n):
            mine[target] = shards.shard(flat, old_rank, old)[source]
        assert torch.equal(mine, shards.shard(flat, rank, n))


def test_what_does_not_fit_is_refused_with_the_numbers():
    """A vector that is not padded, one that is not whole, no ranks at all."""
    with pytest.raises(ValueError, match="10 numbers do not split into 4 equal shards"):
        shards.piece(torch.ones(10), 0, 4)
    with pytest.raises(ValueError, match="need 6 numbers, the vector has 5"):
        shards.unflatten(torch.ones(5), [(2, 3)])
    with pytest.raises(ValueError, match="0 ranks cannot hold shards"):
        shards.shard_size(5, 0)


# --- rings and trees on paper ----------------------------------------------------------------------------------------


@ALL
def test_ring_on_paper_ends_with_the_sum_everywhere(n):
    """After N-1 steps rank r holds chunk r of the sum, after 2 (N-1) every rank holds all of it."""
    start = torch.randn(n, n, 3)
    states = collectives.ring_all_reduce_states(start)
    assert len(states) == 2 * (n - 1) + 1
    for rank in range(n):
        assert_close(states[n - 1][rank, rank], start.sum(0)[rank])
        assert_close(states[-1][rank], start.sum(0))


def test_ring_refuses_a_number_of_chunks_that_is_not_that_of_the_ranks():
    """Three chunks on two ranks."""
    with pytest.raises(ValueError, match="3 chunks on 2 ranks"):
        collectives.ring_all_reduce_states(torch.ones(2, 3, 1))


@pytest.mark.parametrize("n", range(1, 18))
def test_tree_reaches_every_rank_once_in_log_rounds(n):
    """From any root: those whom a rank sends to name it as their source, and nobody is further than ⌈log₂ N⌉ rounds away."""
    for root in range(n):
        plan = {rank: collectives.tree(rank, n, root) for rank in range(n)}
        reached = Counter(other for _, further in plan.values() for other in further)
        assert reached == Counter(rank for rank in range(n) if rank != root)
        rounds = {root: 0}
        for _ in range(n):
            for rank in [r for r in plan if r in rounds]:
                for k, other in enumerate(plan[rank][1]):
                    assert plan[other][0] == rank
                    rounds[other] = rounds[rank] + k + 1
        assert len(rounds) == n and max(rounds.values()) <= (n - 1).bit_length()


# --- collectives on the wire -----------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("name", ["all_reduce", "reduce_scatter", "all_gather", "broadcast", "all_to_all"])
def test_collective_by_hand_equals_the_library(ranks, n, name):
    """On every rank, for vectors that the ranks do not divide."""
    for found in ranks(n):
        assert found["by_hand"][name]["error"] <= (1e-6 if "reduce" in name else 0)


@ALL
def test_ring_all_reduce_sends_two_n_minus_one_over_n_of_the_bytes(ranks, n):
    """2 (N-1) messages, each of one chunk."""
    for found in ranks(n):
        sends, padded = found["by_hand"]["all_reduce"]["sends"], found["by_hand"]["padded bytes"]
        assert len(sends) == 2 * (n - 1) and sum(sends) == 2 * (n - 1) / n * padded


@ALL
def test_other_collectives_send_what_theory_says(ranks, n):
    """Reduce-scatter (N-1)/N of what goes in, all-gather (N-1)/N of what comes out, all-to-all all rows but one's own."""
    for found in ranks(n):
        hand = found["by_hand"]
        assert sum(hand["reduce_scatter"]["sends"]) == (n - 1) / n * hand["padded bytes"]
        assert sum(hand["all_gather"]["sends"]) == (n - 1) / n * (n * hand["padded bytes"])
        assert hand["all_to_all"]["sends"] == [hand["row bytes"]] * (n - 1)


@ALL
def test_broadcast_by_hand_sends_n_minus_one_vectors_in_all(ranks, n):
    """Each rank but the root gets it once."""
    sends = [found["by_hand"]["broadcast"]["sends"] for found in ranks(n)]
    assert sum(map(len, sends)) == n - 1 and {size for some in sends for size in some} <= {7 * 11 * 4}


# --- counting --------------------------------------------------------------------------------------------------------


@ALL
def test_counter_names_every_library_call_with_its_larger_side(ranks, n):
    """Whichever of the library's spellings is used, also the functional one; a barrier is no message."""
    names = [
        "all_reduce",
        "all_gather",
        "all_gather",
        "reduce_scatter",
        "reduce_scatter",
        "broadcast",
        "all_to_all",
        "all_reduce",
    ]
    for found in ranks(n):
        assert found["library_calls"]["calls"] == [[name, n * 3 * 4, n] for name in names]


@ALL
@pytest.mark.parametrize("frozen", ["", ", frozen"], ids=["trained", "frozen"])
@STAGES
def test_zero_makes_exactly_the_calls_of_theory(ranks, n, stage, frozen):
    """Names, bytes and ranks of a step with two backward passes."""
    for found in ranks(n):
        one = found["counted"][f"ZeRO-{stage}{frozen}"]
        assert one["calls"] == one["theory"] and one["sent"] == pytest.approx(one["wanted"])


@ALL
def test_ddp_sends_each_bucket_once_however_many_backward_passes(ranks, n):
    """`no_sync` keeps the first backward silent."""
    for found in ranks(n):
        one = found["counted"]["DDP"]
        assert one["calls"] == one["theory"] and len(one["calls"]) > 2


@SEVERAL
def test_stage_3_sends_half_as_much_again_as_ddp_a_backward(ranks, n):
    """3 Ψ against 2 Ψ, less the root, which is gathered once."""
    for found in ranks(n):
        counts = found["counted"]
        assert 2.2 < counts["ZeRO-3"]["sent"] / counts["torch DDP"]["sent"] < 3.0  # two backwards there, one sum here


@SEVERAL
def test_stage_3_sends_no_more_than_fsdp2(ranks, n):
    """Which pads every parameter by itself, where we pad a layer."""
    for found in ranks(n):
        assert found["counted"]["ZeRO-3"]["sent"] <= found["counted"]["FSDP2"]["sent"]


@SEVERAL
def test_frozen_parameters_send_no_gradients(ranks, n):
    """Under LoRA stages 1 and 2 send a tenth of the bytes or less; stage 3 must still gather the frozen weights."""
    for found in ranks(n):
        sent = {name: one["sent"] for name, one in found["counted"].items()}
        assert sent["ZeRO-1, frozen"] < sent["ZeRO-1"] / 10 and sent["ZeRO-2, frozen"] < sent["ZeRO-2"] / 10
        assert sent["ZeRO-3"] / 2 < sent["ZeRO-3, frozen"] < sent["ZeRO-3"]


# --- bytes -----------------------------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@STAGES
def test_state_bytes_measured_are_those_of_the_formula(ranks, n, stage, dtype):
    """Parameters, gradients and optimizer of every rank, after backward, exactly."""
    for found in ranks(n):
        one = found["state_bytes"][f"ZeRO-{stage}, {dtype}"]
        assert one["held"] == one["wanted"]


@ALL
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stage_3_holds_sixteen_bytes_a_parameter_over_all_ranks(ranks, n, dtype):
    """4 + 4 + 8 in float32, 2 + 2 + 12 with bf16; padding adds less than a number a rank for each vector."""
    held = [found["state_bytes"][f"ZeRO-3, {dtype}"] for found in ranks(n)]
    total = sum(sum(one["held"].values()) for one in held)
    assert 0 <= total - 16 * held[0]["parameters"] < 16 * n * 5


@SEVERAL
@STAGES
def test_each_stage_divides_one_more_state_by_the_ranks(ranks, n, stage):
    """Stage 1 the optimizer's, stage 2 the gradients too, stage 3 the parameters too."""
    one = ranks(n)[0]["state_bytes"][f"ZeRO-{stage}, float32"]
    whole = {"parameters": 4 * one["parameters"], "gradients": 4 * one["parameters"], "optimizer": 8 * one["parameters"]}
    shares = {name: bytes_ / whole[name] for name, bytes_ in one["held"].items()}
    divided = {"optimizer": 1, "gradients": 2, "parameters": 3}
    for name, share in shares.items():
        assert share == pytest.approx(1 / n if stage >= divided[name] else 1, rel=0.01)


@ALL
def test_stage_3_holds_no_more_bytes_than_fsdp2(ranks, n):
    """At most 1.05 times, on the rank that holds most; in fact less, since a layer is padded once."""
    held = [found["state_bytes"] for found in ranks(n)]
    ours, theirs = (max(sum(one[name]["held"].values()) for one in held) for name in ("ZeRO-3, float32", "FSDP2, float32"))
    assert ours <= 1.05 * theirs


def test_formula_gives_the_papers_example():
    """7.5 B parameters on 64 GPUs with 2 + 2 + 12 bytes: 31.4, 16.6 and 1.9 GB (Rajbhandari et al., figure 1)."""
    model = [counting.Vector(7_500_000_000, itemsize=2)]
    totals = [sum(counting.zero_bytes(model, 64, stage).values()) / 1e9 for stage in (1, 2, 3)]
    assert [round(total, 1) for total in totals] == [31.4, 16.6, 1.9]


# --- equal -----------------------------------------------------------------------------------------------------------

STRATEGIES = ["DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3"]
CASES = ["plain", "tied, clipped, accumulated", "frozen under LoRA, clipped"]
PAIRS = [(strategy, case) for strategy in STRATEGIES for case in CASES if (strategy, case[:6]) != ("ZeRO-2", "frozen")]


@ALL
@pytest.mark.parametrize(("strategy", "case"), PAIRS)
def test_losses_norms_and_logits_equal_one_process(ranks, n, strategy, case):
    """After 20 AdamW steps on the same global batches (8 of many features), on every rank, from ranks that began unlike."""
    for found in ranks(n):
        for name, error in found["equal"][f"{strategy}, {case}"]["one process"].items():
            assert error <= STATED, name


@ALL
@pytest.mark.parametrize(("strategy", "case"), PAIRS)
def test_losses_norms_and_logits_equal_torchs_own_engine(ranks, n, strategy, case):
    """DistributedDataParallel for DDP without frozen weights, else `fully_shard`."""
    for found in ranks(n):
        for name, error in found["equal"][f"{strategy}, {case}"]["engine"].items():
            assert error <= STATED, name


@ALL
def test_torchs_engines_equal_one_process_too(ranks, n):
    """So that agreeing with them means something."""
    for found in ranks(n):
        engines = [found["equal"][f"{engine}, {case}"]["one process"] for engine in ("torch DDP", "FSDP2") for case in CASES]
        assert max(error for one in engines for error in one.values()) <= STATED


def test_the_runs_compared_learn_something_and_are_clipped_in_part(ranks):
    """Losses fall far more than the tolerance, and the norm that clips lies among those met."""
    one = {case: ranks(4)[0]["equal"][f"one process, {case}"] for case in CASES}
    assert one["plain"]["losses"][-1] < one["plain"]["losses"][0] - 1
    for case, clip in (("tied, clipped, accumulated", 0.9), ("frozen under LoRA, clipped", 0.9 / 4)):
        assert min(one[case]["norms"]) < clip < max(one[case]["norms"])


def test_bfloat16_losses_are_the_same_in_every_stage(ranks):
    """The stages differ in where numbers lie, not in what is added to what."""
    losses = ranks(2)[0]["bfloat16"]
    assert losses["ZeRO-1"] == losses["ZeRO-2"] == losses["ZeRO-3"] != losses["float32"]


@pytest.mark.parametrize("other", ["FSDP2", "float32"])
def test_bfloat16_losses_stay_close(ranks, other):
    """To FSDP2 under the same policy, and to float32 as far as 8 bits of mantissa allow."""
    losses = ranks(2)[0]["bfloat16"]
    assert_close(torch.tensor(losses["ZeRO-3"]), torch.tensor(losses[other]), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    "switch", ["no prefetch", "no overlap", "recomputation inside the unit", "recomputation outside the unit"]
)
def test_when_things_happen_does_not_change_what_comes_out(ranks, switch):
    """Prefetch, overlap, and activation checkpointing inside or around the gathered layer."""
    for found in ranks(2):
        assert max(found["switches"][switch].values()) == 0


def test_global_norm_counts_a_parameter_once_across_tensor_parallel_ranks(ranks):
    """With `copies`; without them, ranks that hold the same add up to √N of it."""
    for found in ranks(2):
        one = found["norms_with_copies"]
        assert one["counted once"] == pytest.approx(one["one process"], rel=1e-6)
        assert one["counted on every rank"] == pytest.approx(2**0.5 * one["one process"], rel=1e-6)


# --- DDP: buckets and their order ------------------------------------------------------------------------------------


def parameters(*sizes: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(size)) for size in sizes]


def test_buckets_are_filled_from_the_last_parameter_and_closed_when_full():
    """Bytes decide: 40 are full at 10 floats."""
    buckets = ddp.fill_buckets(parameters(3, 20, 4, 5, 2), 40)
    assert [[p.numel() for p in bucket] for bucket in buckets] == [[2, 5, 4], [20], [3]]


def test_a_bucket_holds_one_dtype():
    """A change of dtype closes it."""
    mixed = [nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16, torch.bfloat16)]
    assert [len(bucket) for bucket in ddp.fill_buckets(mixed, 10**6)] == [2, 1]


def test_overlap_sends_the_first_bucket_before_most_gradients_are_there(ranks):
    """Without it nothing is sent before all are."""
    for found in ranks(2):
        missing = found["order_of_events"]["missing, overlap True"]
        assert missing[0] > 10 and missing == sorted(missing, reverse=True)
        assert set(found["order_of_events"]["missing, overlap False"]) == {0}


def test_parameters_that_only_some_ranks_use_get_the_mean_with_zeros(ranks):
    """One of two ranks uses each head, so each head moves by half its gradient, on both ranks alike."""
    for found in ranks(2):
        assert found["half_used"] == {"even bias": 0.5, "odd bias": 0.5}


def test_gradients_zeroed_by_hand_come_back_into_the_buckets(ranks):
    """A habit of every training loop must not part the ranks."""
    for found in ranks(2):
        assert max(found["zeroed_by_hand"].values()) <= STATED


# --- stage 3: what is gathered when ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["prefetch True", "frozen"])
def test_prefetch_gathers_the_next_layer_and_never_a_third(ranks, kind):
    """Forward: the layer and the one after it; backward: the layer and the one before it; afterwards none. Frozen layers too."""
    for found in ranks(2):
        held = found["order_of_events"][f"layers, {kind}"]
        assert held == [[0, 1], [1, 2], [2, 3], [3], [2, 3], [1, 2], [0, 1], [0], []]


def test_without_prefetch_one_layer_is_whole_at_a_time(ranks):
    """The least memory there can be."""
    for found in ranks(2):
        assert found["order_of_events"]["layers, prefetch False"] == [[0], [1], [2], [3], [3], [2], [1], [0], []]


@pytest.mark.parametrize("when", ["outside", "after evaluation"])
def test_a_freed_parameter_reads_as_nan(ranks, when):
    """Not as memory that belongs to someone else by now."""
    assert all(found["holes"][when] for found in ranks(2))


@pytest.mark.parametrize("when", ["inside", "trace", "removed"])
def test_gathered_parameters_are_rank_0s_on_every_rank(ranks, when):
    """Within `gathered`, where the model's methods work as well, and after `remove`."""
    assert all(found["holes"][when] for found in ranks(2))


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 1])
@pytest.mark.parametrize(("run", "tolerance"), [("float32", STATED), ("frozen", STATED), ("bfloat16", 0.01)])
def test_saved_on_four_ranks_resumes_on_fewer_with_the_same_losses(ranks, n, run, tolerance):
    """Values, moments, step counts and the changed learning rate, in another stage than the one that saved."""
    wanted, found = ranks(4)[0]["checkpoints"][run], ranks(n)[0]["checkpoints"][run]
    for name, factor in (("losses", 1), ("norms", 1), ("logits", 5)):
        assert_close(torch.tensor(found[name]), torch.tensor(wanted[name]), rtol=0, atol=factor * tolerance)
    assert abs(found["before"][-1] - wanted["losses"][0]) > tolerance and found["extra"] == {"step": 3}


@pytest.mark.parametrize("run", ["float32", "frozen", "bfloat16"])
def test_whole_checkpoint_is_read_without_ranks(ranks, folder, run):
    """Every parameter by name, in its own shape, float32 masters where there are any."""
    found, end = checkpoint.whole(folder / run), ranks(4)[0]["checkpoints"][run]["end"]
    assert found.keys() == end.keys() and found["embed.weight"].shape == (61, 20)
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in found.values())


def test_checkpoint_is_four_files_of_a_quarter_and_an_index(folder):
    """Every rank writes its own part, and nothing half-written is left."""
    files = sorted(path.name for path in (folder / "float32").iterdir())
    assert files == ["index.json", *(f"rank-{rank:05d}-of-00004.safetensors" for rank in range(4))]
    sizes = [path.stat().st_size for path in (folder / "float32").glob("*.safetensors")]
    assert max(sizes) - min(sizes) < 64 and not list(folder.glob(".*.partial"))


def test_saving_over_a_checkpoint_is_refused_on_every_rank(ranks):
    """One directory a checkpoint."""
    assert all("exists already" in found["checkpoints"]["float32"]["exists"] for found in ranks(4))


def test_loading_into_another_model_is_refused_with_the_difference(ranks):
    """Fewer layers than were saved."""
    for found in ranks(2):
        assert "cut the model into the same units" in found["checkpoints"]["float32"]["another"]


def test_a_directory_without_a_checkpoint_is_named(tmp_path):
    """Rather than a missing file of ours."""
    with pytest.raises(ValueError, match=r"holds no sharded checkpoint: index\.json is missing"):
        checkpoint.whole(tmp_path)


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("no backward", "call loss.backward() before it"),
        ("no backward, DDP", "must be outside no_sync()"),
        ("no sync", "must be outside no_sync()"),
        ("frozen", "unfreeze some"),
        ("frozen, DDP", "unfreeze some"),
        ("unit", "unit 'blocks.9' is not a module of that name"),
        ("rows", "x has 3 rows for 2 ranks"),
    ],
)
def test_misuse_is_refused_with_the_way_out(ranks, what, says):
    """On every rank, so that none is left waiting."""
    assert all(says in found["refused"][what] for found in ranks(2))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: zero.Config(stage=4), "stage=4 is unknown; choose 1"),
        (lambda: zero.Config(dtype=torch.float16), "choose torch.bfloat16"),
        (lambda: zero.Config(clip=0), "clip=0 must be above 0"),
        (lambda: ddp.Config(clip=-1.0), "clip=-1.0 must be above 0"),
        (lambda: ddp.Config(bucket_bytes=0), "bucket_bytes=0 must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(make, says):
    """Before any rank waits for another."""
    with pytest.raises(ValueError, match=says):
        make()


def test_layers_are_the_items_of_the_outermost_lists():
    """Experts inside a layer stay with their layer."""
    inner = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(2, 2)])})
    model = nn.ModuleDict({"blocks": nn.ModuleList([inner, nn.Linear(2, 2)]), "tail": nn.ModuleList([nn.Linear(2, 2)])})
    assert list(zero.units_of(model)) == ["blocks.0", "blocks.1", "tail.0"]
