"""What notebook 14 needs beside the methods it teaches: pictures of real runs, the measured times of FSDP and DDP, the claims."""

import json

import pytest

from llmcourse.claims import LEDGER
from llmcourse.sharding import commands, pictures, speed


def bucket(full: float, begins: float, ends: float) -> dict[str, float]:
    return {"full": full, "begins": begins, "ends": ends}


def run(size: str, number: int, factor: float) -> speed.Run:
    """DDP in 0.1 s, FSDP `factor` times as long; the first steps, which do not count, far slower."""
    slow, usual = (9.0,) * speed.WARMUP, (0.1 * factor,) * 4
    return speed.Run(size=size, launch=number, ddp=(*slow, *(0.1,) * 5), fsdp=(1.0, 2.0, 3.0, *usual, 7.0))


def measured(factor: float = 1.1) -> speed.Measured:
    runs = [run(size, number, factor * 2 ** (number - 1)) for number in range(3) for size in speed.SIZES]
    return speed.Measured(runs=tuple(runs), provenance={"minutes": 1.0})


# --- pictures ----------------------------------------------------------------------------------------------------------


def test_overlap_counts_the_buckets_sent_before_the_last_was_full():
    """A panel a run, a dot and a bar a bucket."""
    early = [bucket(0, 0, 0.02), bucket(0.01, 0.01, 0.02), bucket(0.03, 0.03, 0.04)]
    late = [bucket(0, 0.03, 0.04), bucket(0.01, 0.03, 0.05), bucket(0.03, 0.03, 0.06)]
    fig = pictures.overlap({"overlap": early, "none": late})
    assert [ax.get_title(loc="left").partition(" sent")[0] for ax in fig.axes] == ["overlap: 2 of 3", "none: 0 of 3"]
    assert [(len(ax.patches), len(ax.lines)) for ax in fig.axes] == [(3, 3), (3, 3)]
    assert fig.axes[1].patches[0].get_x() == pytest.approx(30)  # milliseconds


def test_a_bar_of_what_was_held_ends_where_its_parts_do_and_the_formula_has_a_line_of_its_own():
    """So that a wrong formula would be seen."""
    part = {"parameters": 1e6, "gradients": 2e6, "optimizer": 3e6}
    fig = pictures.held({"a": {"bytes": part, "planned": part | {"optimizer": 5e6}}, "b": {"bytes": part, "planned": part}})
    ax = fig.axes[0]
    ends = [max(p.get_x() + p.get_width() for p in ax.patches if round(p.get_y() + p.get_height() / 2) == y) for y in (0, 1)]
    assert ends == pytest.approx([6, 6])
    assert [line.get_xdata()[0] for line in ax.lines] == pytest.approx([8, 6])


def test_a_vector_is_cut_into_equal_parts_and_padded():
    """10 numbers on 4 ranks: parts of 3, two of padding."""
    ax = pictures.vector({"a": 6, "b": 3, "c": 1}, 4).axes[0]
    assert [line.get_xdata()[0] for line in ax.lines] == [0, 3, 6, 9]
    assert [patch.get_width() for patch in ax.patches] == [6, 3, 1, 2]
    assert "2 of padding" in ax.get_xlabel()


def test_collectives_are_drawn_with_what_every_rank_holds_before_and_after():
    """Sums appear where one is computed, and all-to-all is a transpose."""
    texts = {ax.get_title(): [text.get_text() for text in ax.texts if text.get_text()] for ax in pictures.collectives().axes}
    assert list(texts) == ["all-reduce", "reduce-scatter", "all-gather", "broadcast", "all-to-all"]
    assert texts["all-reduce"].count("Σb") == 3 and texts["reduce-scatter"].count("Σb") == 1
    assert texts["all-gather"].count("b") == 4 and texts["broadcast"].count("b") == 4
    assert texts["all-to-all"][-9:] == ["a0", "a1", "a2", "b0", "b1", "b2", "c0", "c1", "c2"]


# --- FSDP's time over DDP's ----------------------------------------------------------------------------------------------


def test_a_launchs_ratio_is_the_median_of_its_pairs_without_the_first_steps():
    """Neither the slow start nor one slow step counts."""
    assert run("0.3 M", 0, 1.3).ratio == pytest.approx(1.3)


def test_launches_are_averaged_as_ratios():
    """Half as fast and twice as fast are as fast: the geometric mean."""
    found = measured(1.0).ratio("6.5 M")
    assert found.mean == pytest.approx(1.0) and found.low == pytest.approx(1 / found.high)
    assert measured(1.1).seconds("6.5 M") == pytest.approx((0.1, 0.11))


def test_a_measurement_launches_every_size_and_writes_what_is_read_back(tmp_path, monkeypatch):
    """Sizes in turns, five launches each, DDP and FSDP in the same one."""
    launched = []

    class Done:
        results = [{name: {"seconds": [0.1234567] * 5} for name in ("torch-ddp", "fsdp2")}]  # noqa: RUF012 (never changed)

    def start(script, *, ranks, strategy, width, **options):
        launched.append((script, ranks, tuple(strategy), width))
        return Done

    monkeypatch.setattr(speed.launch, "run", start)
    found = speed.measure(tmp_path / "speed.json")
    assert launched[:3] == [("train", 2, ("torch-ddp", "fsdp2"), width) for width in (64, 128, 256)]
    assert len(launched) == len(found.runs) == speed.LAUNCHES * len(speed.SIZES)
    assert found.runs[0].ddp == (0.12346,) * 5 and found == speed.load(tmp_path / "speed.json")
    assert found.provenance["command"] == speed.COMMAND


def test_a_missing_or_damaged_file_says_how_to_measure_again(tmp_path):
    """Rather than a traceback of json."""
    with pytest.raises(FileNotFoundError, match=speed.COMMAND):
        speed.load(tmp_path / "none.json")
    (tmp_path / "speed.json").write_text(json.dumps({"runs": [{"size": "0.3 M"}]}), encoding="utf-8")
    with pytest.raises(ValueError, match="damaged"):
        speed.load(tmp_path / "speed.json")


def test_the_shipped_runs_are_all_that_the_plan_names():
    """Five launches of each size, with every step but the measured one."""
    found = speed.load()
    assert sorted((run.size, run.launch) for run in found.runs) == [
        (s, n) for s in sorted(speed.SIZES) for n in range(speed.LAUNCHES)
    ]
    assert {len(run.ddp) for run in found.runs} == {len(run.fsdp) for run in found.runs} == {speed.STEPS - 1}


def test_the_measurement_is_a_command():
    """The one that its file names."""
    assert list(commands.MEASUREMENTS) == ["fsdp"] and speed.COMMAND == "llmcourse measure fsdp"


# --- the claims --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "holds at this scale"),
        ({"bytes_per_parameter": 12}, "does not hold here"),
        ({"stage3_ratio_at_64": 8.0}, "does not hold here"),
        ({"measured_over_formula": 1.2}, "does not hold here"),
    ],
)
def test_the_claim_about_zero_falls_with_any_of_its_numbers(changed, verdict):
    """16 bytes, the three ratios, and measured bytes equal to the formula."""
    rule = LEDGER["zero-1-2-3"].rule
    ratios = {"stage1_ratio_at_64": 3.82, "stage2_ratio_at_64": 7.21, "stage3_ratio_at_64": 64.0}
    numbers = {"bytes_per_parameter": 16, "measured_over_formula": 1.0, **ratios} | changed
    assert rule.judge(rule.validate(numbers)) == verdict


@pytest.mark.parametrize(("time", "verdict"), [(1.1, "holds at this scale"), (1.4, "does not hold here")])
def test_the_claim_about_fsdp_falls_with_its_time(time, verdict):
    """However many bytes it saves."""
    rule = LEDGER["fsdp-vs-ddp"].rule
    numbers = {
        "time_fsdp_over_ddp": time,
        "ddp_bytes": 4.4e6,
        "fsdp_bytes": 1.1e6,
        "bytes_sent_4_ranks": 1.5,
        "bytes_sent_2_ranks": 1,
    }
    assert rule.judge(rule.validate(numbers)) == verdict
