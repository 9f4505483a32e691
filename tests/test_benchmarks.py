"""The race harness: fair pairs, an honest interval, the verdict's rule."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture
def harness(tmp_path, monkeypatch):
    """benchmarks/race.py, which is not installed, writing its results to a temporary folder."""
    path = Path(__file__).parent.parent / "benchmarks" / "race.py"
    spec = importlib.util.spec_from_file_location("race_harness", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "race_harness", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def result(harness, **changes):
    numbers = {"ours": 1.0, "theirs": 2.0, "ratio": 0.5, "low": 0.4, "high": 0.6, "goal": 0.5, "pairs": 3}
    return harness.Result(**{"name": "x", **numbers, **changes})


def test_each_pair_calls_both_sides_and_the_order_alternates(harness):
    calls = []
    harness.race("x", lambda: calls.append("a"), lambda: calls.append("b"), goal=1.0, pairs=4, warmup=1)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab" + "ba"


def test_ratio_is_ours_over_theirs_whichever_ran_first(harness, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(harness, "perf_counter", lambda: clock[0])

    def take(seconds):
        clock[0] += seconds

    raced = harness.race("x", lambda: take(1.0), lambda: take(4.0), goal=0.3, pairs=5)
    assert (raced.ours, raced.theirs, raced.ratio, raced.low, raced.high) == pytest.approx((1, 4, 0.25, 0.25, 0.25))


def test_interval_encloses_the_median_and_widens_with_the_spread(harness):
    narrow, wide = harness.interval([0.9, 1.0, 1.1] * 5), harness.interval([0.5, 1.0, 1.5] * 5)
    assert narrow[0] <= 1.0 <= narrow[1]
    assert wide[1] - wide[0] >= narrow[1] - narrow[0] > 0


def test_the_goal_is_met_when_the_upper_end_is_within_five_hundredths(harness):
    assert result(harness, high=0.549).met
    assert not result(harness, high=0.551, ratio=0.1).met


def test_report_writes_the_results_and_the_machine(harness, tmp_path, capsys):
    harness.report("demo", [result(harness)])
    written = json.loads((tmp_path / "demo.json").read_text(encoding="utf-8"))
    assert written["results"][0]["met"] is False and written["machine"]["threads"] >= 1
    assert "not met" in capsys.readouterr().out and list(tmp_path.iterdir()) == [tmp_path / "demo.json"]


def test_peak_memory_counts_what_is_held_at_once_and_not_what_was_held_before(harness):
    before = torch.zeros(1000, 1000)

    def run():
        big = before + 1  # 4 MB
        both = big * 2, big * 3  # 12 MB at once
        del big, both
        return before + 4  # and 4 MB later

    assert harness.peak_bytes(run) == pytest.approx(12e6, rel=0.01)


def test_memory_race_warms_both_sides_up_and_reports_megabytes(harness):
    kept = []

    def ours():
        kept.append(torch.zeros(250, 1000)) if not kept else None  # 1 MB that lasts: made in the warm-up
        return torch.zeros(500, 1000)

    raced = harness.memory_race("x", ours, lambda: torch.zeros(1000, 1000), goal=0.5)
    assert (raced.ours, raced.theirs, raced.ratio, raced.low, raced.high) == pytest.approx((2, 4, 0.5, 0.5, 0.5), rel=0.01)
    assert raced.unit == "MB" and raced.met


def test_report_names_the_unit(harness, capsys):
    harness.report("demo", [result(harness, unit="MB")])
    assert "1 MB" in capsys.readouterr().out
