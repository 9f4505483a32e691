"""What notebook 05 needs beside the methods it teaches: pictures with controls, and the measured pairs of LoRA and QLoRA."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from llmcourse import show
from llmcourse.claims import LEDGER
from llmcourse.quantization import commands, int8, nf4, par, pictures

WEIGHT = torch.randn(37, 53, generator=torch.Generator().manual_seed(0))
PLAN = par.Plan(seeds=(0, 1, 2, 3, 4))


def measured(shift: float = 0.0) -> par.Measured:
    """Five invented pairs: QLoRA lies `shift` points above LoRA."""
    runs = [
        par.Run(base=base, seed=seed, f1=90 + seed / 10 + shift * (base == "nf4"), frozen=30.0, loss=0.2, seconds=6.0)
        for seed in reversed(PLAN.seeds)
        for base in ("nf4", "float32")
    ]
    return par.Measured(runs=tuple(runs), plan=PLAN, provenance={"command": par.COMMAND, "minutes": 1.0})


# ---- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(2, 9))
def test_even_levels_are_the_integers_of_so_many_bits(bits):
    levels = pictures.even_levels(bits)
    assert len(levels) == 2**bits - 1 and levels[0] == -1 and levels[-1] == 1
    assert levels[len(levels) // 2] == 0


def test_eight_bits_in_one_block_are_absmax():
    codes, scale = int8.absmax_codes(WEIGHT)
    found = pictures.rounded(WEIGHT, 8, 4096)
    assert found.error == pytest.approx(int8.errors(WEIGHT, codes * scale).relative, rel=1e-4)


@pytest.mark.parametrize("block", [16, 64, 256])
def test_normal_quantiles_have_the_error_of_nf4(block):
    restored = nf4.dequantize(nf4.quantize(WEIGHT, block_size=block))
    found = pictures.rounded(WEIGHT, 4, block, "normal quantiles (4 bits)")
    assert found.error == pytest.approx(int8.errors(WEIGHT, restored).relative, rel=1e-4)


def test_more_bits_and_smaller_blocks_have_smaller_errors():
    by_bits = [pictures.rounded(WEIGHT, bits, 64).error for bits in (8, 6, 4, 2)]
    by_block = [pictures.rounded(WEIGHT, 4, block).error for block in (16, 64, 1024)]
    assert by_bits == sorted(by_bits) and by_block == sorted(by_block)


def test_the_picture_can_be_drawn_at_both_ends_of_every_control():
    def draw(**values):
        return pictures.picture(WEIGHT, **values)

    settings = list(show.ends(pictures.CONTROLS, draw))
    assert {values["bits"] for values in settings} >= {2, 8}
    for values in settings:
        title = draw(**values).axes[0].get_title(loc="left")
        assert f"blocks of {values['block']}: error" in title
        assert len(pictures.alt(**values).split()) > 4


# ---- the measured pairs -----------------------------------------------------------------------------------------------


def test_scores_come_in_the_order_of_the_seeds():
    assert measured().scores("float32") == [90.0, 90.1, 90.2, 90.3, 90.4]


def test_the_claim_gets_exactly_the_numbers_it_needs():
    numbers = measured(shift=-0.5).claim_numbers()
    assert numbers.keys() == LEDGER["qlora-par"].rule.needs.keys()
    assert numbers["f1_qlora_minus_lora"] == pytest.approx((-0.5, -0.5, -0.5))
    assert numbers["f1_lora_minus_frozen"].mean == pytest.approx(60.2)


@pytest.mark.parametrize(("shift", "verdict"), [(-0.5, "holds"), (-3.0, "does not hold here")])
def test_a_qlora_that_is_worse_than_the_margin_is_not_on_a_par(shift, verdict):
    rule = LEDGER["qlora-par"].rule
    assert rule.judge(rule.validate(measured(shift).claim_numbers())).startswith(verdict)


def test_the_interval_of_one_more_run_is_a_point_wide_at_least():
    low, high = measured().interval("nf4")
    assert (low, high) == pytest.approx((89.2, 91.2))


def test_runs_are_written_and_read_back(tmp_path):
    path = tmp_path / "par.json"
    path.write_text(measured().to_json(), encoding="utf-8")
    back = par.load(path)
    assert back == measured()


def test_a_missing_or_damaged_file_says_how_to_measure_again(tmp_path):
    with pytest.raises(FileNotFoundError, match=par.COMMAND):
        par.load(tmp_path / "none.json")
    (tmp_path / "par.json").write_text('{"plan": {}}', encoding="utf-8")
    with pytest.raises(ValueError, match="damaged"):
        par.load(tmp_path / "par.json")


def test_kept_runs_are_not_made_again(tmp_path, monkeypatch):
    made = []

    def train_one(base, seed, plan):
        made.append((base, seed))
        run = par.Run(base=base, seed=seed, f1=90.0, frozen=30.0, loss=0.1, seconds=1.0)
        return par.Trained(run, None, None)

    monkeypatch.setattr(par, "train_one", train_one)
    for _ in range(2):
        found = par.measure(replace(PLAN, seeds=(0, 1)), out=tmp_path / "par.json", kept=tmp_path / "kept")
    assert made == [("float32", 0), ("nf4", 0), ("float32", 1), ("nf4", 1)]
    assert par.load(tmp_path / "par.json").runs == found.runs
    assert json.loads((tmp_path / "par.json").read_text(encoding="utf-8"))["command"] == par.COMMAND


def test_a_short_run_differs_between_the_bases_in_nothing_but_the_base():
    """Before training, the same texts and answers; the nf4 base may judge a few of them otherwise."""
    plan = par.Plan(steps=2, size=2, tested=40)
    runs = [par.train_one(base, 7, plan) for base in ("float32", "nf4")]
    assert [each.run.base for each in runs] == ["float32", "nf4"]
    assert abs(runs[0].run.frozen - runs[1].run.frozen) < 20
    starts = [{n: tuple(p.shape) for n, p in each.adapter.named_parameters()} for each in runs]
    assert starts[0] == starts[1]


def test_the_quick_guesses_are_the_classifiers_own():
    plan = par.Plan(steps=1, size=2, tested=10)
    classifier = par.train_one("float32", 0, plan).classifier
    texts = ["The ending seemed enchanting to me.", "The script was really silly. I call it atrocious."]
    assert par._guesses(classifier, texts) == classifier.guesses(texts)


def test_every_measurement_is_a_command():
    assert list(commands.MEASUREMENTS) == ["qlora"] and f"llmcourse measure {next(iter(commands.MEASUREMENTS))}" == par.COMMAND
