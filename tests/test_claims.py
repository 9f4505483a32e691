"""The ledger, its rules, `claim` and `expect`, and what is read back from notebooks."""

import json
import math
import re

import numpy as np
import pytest
import torch

from llmcourse import claims, show
from llmcourse.claims import LEDGER, claim, differences, expect, judge, ledger, read
from llmcourse.claims.rules import (
    at_least,
    at_most,
    between,
    every,
    exactly,
    falls,
    not_worse,
    provided,
    ratio_at_least,
    rises,
    stays_below,
    within_margin,
)

LORA = {"full": 32_768, "lora": 4_608}
HOLDS, HERE, NOT, UNTESTABLE = "holds", "holds at this scale", "does not hold here", "not testable at this scale"


@pytest.fixture
def cards(monkeypatch):
    """Every card shown: (status, title, body, extra)."""
    seen = []
    monkeypatch.setattr(show, "card", lambda status, title, body="", *, extra=None: seen.append((status, title, body, extra)))
    return seen


def record(cards):
    return next(iter(cards[-1][3].values()))


# ---- rules ----


@pytest.mark.parametrize(
    "rule, measured, verdict",
    [
        (exactly("n", 3), 3, HOLDS),
        (exactly("n", 3), 4, NOT),
        (at_least("x", 3), 3, HERE),
        (at_least("x", 3), 2.9, NOT),
        (at_most("x", 3), 3, HERE),
        (at_most("x", 3), 3.1, NOT),
        (between("x", 1, 2), 1, HERE),
        (between("x", 1, 2), 2, HERE),
        (between("x", 1, 2), 2.1, NOT),
        (between("x", 1, 2), 0.9, NOT),
        (rises("x"), (1.0, 0.1, 2.0), HERE),
        (rises("x"), (1.0, 0.0, 2.0), NOT),
        (rises("x", above=0.5), (1.0, 0.4, 2.0), NOT),
        (falls("x"), (-1.0, -2.0, -0.1), HERE),
        (falls("x"), (-1.0, -2.0, 0.0), NOT),
        (falls("x", below=-0.5), (-1.0, -2.0, -0.4), NOT),
        (stays_below("x", 2), (1.0, -9.0, 1.9), HERE),
        (stays_below("x", 2), (1.0, -9.0, 2.0), NOT),
        (within_margin("x", 2), (0.0, -1.9, 1.9), HERE),
        (within_margin("x", 2), (0.0, -2.0, 1.9), NOT),
        (within_margin("x", 2), (0.0, -1.9, 2.0), NOT),
        (not_worse("x", 2), (3.0, -1.9, 9.0), HERE),
        (not_worse("x", 2), (3.0, -2.0, 9.0), NOT),
        (ratio_at_least("x", "y", 2), {"x": 4, "y": 2}, HERE),
        (ratio_at_least("x", "y", 2), {"x": 3.9, "y": 2}, NOT),
        (ratio_at_least("x", "y", 2), {"x": 0, "y": 0}, NOT),
    ],
)
def test_each_rule_holds_up_to_its_limit_and_no_further(rule, measured, verdict):
    assert rule.judge(rule.validate(measured)) == verdict


@pytest.mark.parametrize("n, x, verdict", [(1, 5, HERE), (0, 5, NOT), (1, 0, NOT)])
def test_every_rule_of_a_combination_counts(n, x, verdict):
    assert every(exactly("n", 1), at_least("x", 5)).judge({"n": n, "x": x}) == verdict


@pytest.mark.parametrize("x, n, verdict", [(5, 1, HOLDS), (5, 0, NOT), (0, 1, UNTESTABLE), (0, 0, UNTESTABLE)])
def test_a_rule_whose_condition_fails_is_not_testable(x, n, verdict):
    assert provided(at_least("x", 5), exactly("n", 1)).judge({"n": n, "x": x}) == verdict


def test_claims_of_equality_need_five_seeds_in_every_combination():
    assert provided(rises("y"), every(exactly("n", 1), within_margin("x", 2))).min_seeds == 5
    assert rises("y").min_seeds == 0


def test_one_name_cannot_stand_for_two_kinds_of_number():
    with pytest.raises(ValueError, match="'x' is declared twice"):
        every(rises("x"), at_least("x", 1))


# ---- the ledger ----

# fmt: off
IDS = [
    "lora-params", "lora-rank", "prompt-params", "prompt-scale", "prompt-neighbours",
    "prefix-params", "ptuningv2-params", "adapter-26", "bitfit-small", "ia3-fewest",
    "qlora-par", "bitnet-bits", "distil-40-60-95", "maml-few-steps", "mtl-forget",
    "flan-heldout", "icl-random-labels", "cot-gain", "self-consistency", "ppo-kl",
    "dpo-stable", "rest-reuse", "rag-cutoff", "pal-exact", "react-hallucination",
    "agenttuning", "zero-1-2-3", "fsdp-vs-ddp", "scaling-power", "bpe-example",
    "lora-vs-full",
]
# fmt: on

# Numbers as each claim's authors would have them: the rule must be able to say yes …
AGREEING = {
    "scaling-power": {"sizes": 4, **{f"r2_{of}": 0.99 for of in ("parameters", "data", "compute")}},
    "bpe-example": {"first_two_merges_equal": 2, "merges_unlike_the_library": 0},
    "lora-params": LORA,
    "prompt-params": {"prompt": 10_240},
    "prefix-params": {"share_at_published_size": 0.1},
    "ptuningv2-params": {"share": 1},
    "adapter-26": {"share": 3.6},
    "bitfit-small": {"share": 0.1},
    "ia3-fewest": {"lora": 100, "ia3": 10},
    "bitnet-bits": {"information": math.log2(3), "packed": 1.6, "memory_ratio_at_3b": 3.55},
    "distil-40-60-95": {"smaller": 40, "faster": 60, "kept": (97, 96, 98)},
    "maml-few-steps": {"steps": 5, "examples": 5},
    "ppo-kl": {"kl_without": 50, "kl_with": 5, "true_reward_change_without_kl": (-1, -2, -0.5)},
    "dpo-stable": {"reward_model_calls": 0, "tokens_sampled": 0},
    "rest-reuse": {"online_tokens": 1e6, "rest_tokens": 1e5},
    "rag-cutoff": {"closed_book_accuracy": 2, "rag_minus_closed_book": (70, 60, 80)},
    "pal-exact": {"bakery_left": 74},
    "react-hallucination": {"hallucinated_react_minus_chain": (-8, -12, -4)},
    "zero-1-2-3": {
        "bytes_per_parameter": 16,
        "stage1_ratio_at_64": 16 / (4 + 12 / 64),
        "stage2_ratio_at_64": 16 / (2 + 14 / 64),
        "stage3_ratio_at_64": 64,
        "measured_over_formula": 1.0,
    },
    "fsdp-vs-ddp": {"time_fsdp_over_ddp": 1, "ddp_bytes": 4, "fsdp_bytes": 2, "bytes_sent_4_ranks": 3, "bytes_sent_2_ranks": 2},
    "lora-vs-full": {"sets_where_lora_is_better": 5},
}
RISE, NONE = (4.0, 3.0, 5.0), (0.0, -0.1, 0.1)


def agreeing(id):
    """Numbers that bear the claim out: an effect rises clearly, a difference that should vanish is nearly nothing."""
    entry = LEDGER[id]
    words = entry.rule.words
    effects = {
        name: NONE if re.search(f"interval of {name} (within|below)", words) else RISE
        for name, quantity in entry.rule.needs.items()
        if quantity.effect
    }
    return effects | AGREEING.get(id, {})


def test_the_ledger_holds_every_claim_of_the_sources():
    assert set(LEDGER) == set(IDS)


@pytest.mark.parametrize("id", IDS)
def test_every_claim_can_hold(id):
    assert judge(id, agreeing(id), seeds=5) in (HOLDS, HERE)


@pytest.mark.parametrize("id, name", [(id, name) for id in IDS for name in LEDGER[id].rule.needs])
def test_every_number_of_every_claim_can_refute_it(id, name):
    """… and no: a number is asked for only if some value of it changes the verdict."""
    quantity = LEDGER[id].rule.needs[name]
    extremes = [(-1e9, -2e9, -1e8), (1e9, 1e8, 2e9)] if quantity.effect else [-1e9, 1e9]
    assert any(judge(id, agreeing(id) | {name: extreme}, seeds=5) in (NOT, UNTESTABLE) for extreme in extremes)


EFFECTS = [id for id in IDS if re.search("interval of [a-z0-9_]+ (above|below) \\d", LEDGER[id].rule.words)]


@pytest.mark.parametrize("id", EFFECTS)
def test_no_claim_of_an_effect_holds_when_there_is_none(id):
    nothing = {name: NONE for name, quantity in LEDGER[id].rule.needs.items() if quantity.effect}
    assert judge(id, agreeing(id) | nothing, seeds=5) in (NOT, UNTESTABLE)


def test_most_claims_are_claims_of_an_effect():
    assert len(EFFECTS) == 21


# ---- claim ----


def test_a_claim_shows_text_published_measured_and_rule(cards):
    claim("lora-params", LORA)
    status, title, body, _ = cards[0]
    assert (status, title) == ("good", "lora-params: holds")
    assert all(
        part in body for part in (LEDGER["lora-params"].text, "Published: 32,768", "full 32,768 parameters", "Rule: full =")
    )


def test_a_claim_leaves_a_machine_readable_record(cards):
    claim("self-consistency", {"accuracy_majority_minus_greedy": (2.0, 1.0, 3.0)}, seeds=range(3), because="b")
    assert json.loads(json.dumps(cards[0][3])) == {
        "application/vnd.llmcourse.claim+json": {
            "id": "self-consistency",
            "measured": {"accuracy_majority_minus_greedy": [2.0, 1.0, 3.0]},
            "verdict": HERE,
            "seeds": [0, 1, 2],
            "because": "b",
            "notebook": "09",
        }
    }


def test_one_number_suffices_where_one_is_needed(cards):
    claim("prompt-params", torch.tensor(10_240))
    assert record(cards)["measured"] == {"prompt": 10_240}


@pytest.mark.parametrize("because, shown", [("", "no explanation yet"), ("only 300 steps", "only 300 steps")])
def test_a_claim_that_does_not_hold_says_why_or_that_it_cannot_yet(cards, because, shown):
    claim("prompt-params", 10_241, because=because)
    status, title, body, _ = cards[0]
    assert (status, title) == ("info", f"prompt-params: {NOT}")
    assert f"Because: {shown}" in body


def test_a_claim_that_cannot_be_tested_has_its_own_card(cards):
    claim("qlora-par", {"f1_lora_minus_frozen": NONE, "f1_qlora_minus_lora": NONE}, seeds=5)
    assert cards[0][:2] == ("todo", f"qlora-par: {UNTESTABLE}")


def test_an_unknown_claim_names_the_nearest():
    with pytest.raises(KeyError, match="Did you mean 'lora-params'") as caught:
        claim("lora-param", 1)
    assert not str(caught.value).startswith("'")


@pytest.mark.parametrize(
    "measured, words",
    [
        ({"full": 1, "lra": 2}, "missing 'lora'; unknown 'lra'"),
        ({"full": 1}, "missing 'lora'.*'lora' \\(parameters\\)"),
        (3, "one number is not enough"),
        ({"full": math.nan, "lora": 1}, "'full' is nan"),
        ({"full": math.inf, "lora": 1}, "'full' is inf"),
    ],
)
def test_measured_numbers_that_do_not_fit_are_named(measured, words):
    with pytest.raises(ValueError, match=f"claim 'lora-params': .*{words}"):
        claim("lora-params", measured)


@pytest.mark.parametrize(
    "effect, words", [(3.0, r"give \(mean, low, high\)"), ((1, 2, 3), "low ≤ mean ≤ high"), ((1, math.nan, 2), "nan")]
)
def test_an_effect_without_a_proper_interval_is_refused(effect, words):
    with pytest.raises(ValueError, match=words):
        claim("self-consistency", effect if isinstance(effect, tuple) is False else {"accuracy_majority_minus_greedy": effect})


def test_a_number_that_is_text_is_refused():
    with pytest.raises(TypeError, match="'full' is a str"):
        claim("lora-params", {"full": "32768", "lora": 1})


@pytest.mark.parametrize("seeds", [None, 4, [0, 1, 2, 3], [0, 0, 0, 0, 0]])
def test_equality_from_too_few_seeds_is_refused(seeds):
    with pytest.raises(ValueError, match="≥5 paired seeds"):
        judge("qlora-par", agreeing("qlora-par"), seeds=seeds)


# ---- expect ----


@pytest.mark.parametrize(
    "value", [1, 1.5, 2, True, torch.tensor(1.5), torch.tensor([[1.5]]), np.float32(1.5), np.int64(2), np.array(1)]
)
def test_a_value_in_the_range_or_on_its_ends_passes(cards, value):
    expect("x", value, low=1, high=2)
    assert cards[0][0] == "good" and record(cards)["passed"] is True


@pytest.mark.parametrize("value", [0.99, 2.01, math.nan, torch.tensor(float("nan")), math.inf, -math.inf])
def test_a_value_outside_fails_with_a_card_and_the_notebook_goes_on(cards, value):
    expect("x", value, low=1, high=2)
    assert cards[0][0] == "bad" and record(cards)["passed"] is False


@pytest.mark.parametrize(
    "bounds, value, passed", [({"low": 1}, 1, True), ({"low": 1}, 0.5, False), ({"high": 1}, 1, True), ({"high": 1}, 2, False)]
)
def test_one_bound_is_enough(cards, bounds, value, passed):
    expect("x", value, **bounds)
    assert record(cards)["passed"] is passed


def test_bounds_may_be_measured_values_too(cards):
    expect("x", 1, low=torch.tensor(0.5), high=np.float32(2))
    assert json.dumps(record(cards)) and record(cards)["passed"] is True


def test_a_bound_of_zero_is_a_bound(cards):
    expect("x", -1, low=0)
    expect("x", 1, high=0)
    assert [card[0] for card in cards] == ["bad", "bad"]


def test_a_failure_raises_with_value_and_range_in_strict_runs(cards, monkeypatch):
    monkeypatch.setenv("LLMCOURSE_STRICT", "1")
    expect("fine", 1.5, low=1)
    with pytest.raises(claims.ExpectationFailed, match="gain of PPO: 3, expected 1 to 2") as caught:
        expect("gain of PPO", 3, low=1, high=2)
    assert isinstance(caught.value, AssertionError)
    assert [card[0] for card in cards] == ["good", "bad"]


def test_nan_fails_in_strict_runs_with_an_open_range(cards, monkeypatch):
    monkeypatch.setenv("LLMCOURSE_STRICT", "1")
    with pytest.raises(claims.ExpectationFailed):
        expect("x", math.nan, low=-math.inf)


def test_an_expectation_leaves_a_machine_readable_record(cards):
    expect("x", math.nan, low=1)
    stored = {"name": "x", "value": "nan", "low": 1, "high": None, "passed": False}
    assert json.loads(json.dumps(cards[0][3], allow_nan=False)) == {"application/vnd.llmcourse.expect+json": stored}


@pytest.mark.parametrize(
    "bounds, words", [({}, "no bound"), ({"low": 2, "high": 1}, "low=2 exceeds high=1"), ({"low": math.nan}, "NaN")]
)
def test_a_range_that_cannot_be_is_refused(bounds, words):
    with pytest.raises(ValueError, match=words):
        expect("x", 1, **bounds)


@pytest.mark.parametrize("value", [torch.zeros(2), np.zeros(2), "1", None])
def test_a_value_that_is_not_one_number_is_refused(value):
    with pytest.raises(TypeError, match="give one number"):
        expect("x", value, low=0)


# ---- reading back ----


def output(mime, data):
    return {"output_type": "display_data", "metadata": {}, "data": {"text/plain": "…", mime: data}}


def notebook(*outputs):
    cells = [{"cell_type": "markdown", "source": ""}, {"cell_type": "code", "source": "", "outputs": list(outputs)}]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def stored(id="lora-params", measured=None, verdict=HOLDS, **more):
    return {"id": id, "measured": measured or LORA, "verdict": verdict, "seeds": None, "because": "", "notebook": "04"} | more


def write(path, *records):
    path.write_text(json.dumps(notebook(*(output(claims.CLAIM_MIME, each) for each in records))), encoding="utf-8")
    return path


def test_claims_and_expectations_are_read_in_order_with_their_cell():
    expectation = {"name": "x", "value": 1, "low": 0, "high": None, "passed": True}
    found = read(
        notebook(
            output(claims.EXPECT_MIME, expectation), {"output_type": "stream", "text": ""}, output(claims.CLAIM_MIME, stored())
        )
    )
    assert [(each["kind"], each["cell"]) for each in found] == [("expect", 1), ("claim", 1)]
    assert found[0].items() >= expectation.items() and found[1]["measured"] == LORA


def test_a_notebook_on_disk_lends_its_name(tmp_path):
    assert read(write(tmp_path / "00_start.ipynb", stored()))[0]["notebook"] == "00_start"


@pytest.mark.parametrize("content", ["{", "[]", '{"cells": 3}', "{}"])
def test_a_file_that_is_no_notebook_is_refused_by_name(tmp_path, content):
    path = tmp_path / "odd.ipynb"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"odd\.ipynb is not a notebook"):
        read(path)


def test_the_ledger_lists_measured_claims_and_those_still_open(tmp_path):
    rows = {row["id"]: row for row in ledger([write(tmp_path / "04_peft.ipynb", stored())])}
    assert list(rows) == list(LEDGER)
    assert rows["lora-params"]["notebook"] == "04_peft" and rows["lora-params"]["verdict"] == HOLDS
    assert rows["lora-params"]["measured"] == "full 32,768 parameters · lora 4,608 parameters"
    assert (rows["mtl-forget"]["notebook"], rows["mtl-forget"]["verdict"]) == ("03, 08", "not measured yet")


def test_a_claim_measured_twice_has_two_rows(tmp_path):
    rows = ledger([write(tmp_path / "a.ipynb", stored()), write(tmp_path / "b.ipynb", stored())])
    assert [row["notebook"] for row in rows if row["id"] == "lora-params"] == ["a", "b"]


# ---- a fresh run against the committed one ----


def consistency(mean, low, high, verdict=HERE):
    return stored("self-consistency", {"accuracy_majority_minus_greedy": [mean, low, high]}, verdict)


def ia3(lora):
    return stored("ia3-fewest", {"lora": lora, "ia3": 10, "f1_ia3_minus_in_context": [3.0, 1.0, 5.0]}, HERE)


@pytest.mark.parametrize(
    "old, new",
    [
        (stored(), stored()),
        (consistency(4, 1, 7), consistency(6.9, 3, 8)),
        (consistency(4, 3.9, 4.1), consistency(4.9, 4.8, 5)),
        (ia3(100), ia3(124)),
    ],
)
def test_a_run_within_tolerance_agrees(old, new):
    assert differences([old], [new]) == []


@pytest.mark.parametrize(
    "old, new, words",
    [
        (stored(), stored(measured={"full": 32_768, "lora": 4_609}), "lora was 4,608, now 4,609"),
        (stored(), stored(verdict=NOT), "verdict was 'holds', now 'does not hold here'"),
        (consistency(4, 3.9, 4.1), consistency(5.2, 5, 6), "was 4 .*, now 5.2"),
        (ia3(100), ia3(126), "lora was 100, now 126"),
        (stored(verdict=NOT), stored(verdict=NOT), "committed numbers give 'holds'"),
        ({"id": "lora-params", "measured": 1.0}, stored(), "does not fit its rule"),
        (stored("gone"), stored("gone"), "not in the ledger"),
    ],
)
def test_a_run_that_disagrees_is_reported(old, new, words):
    assert re.search(words, "\n".join(differences([old], [new])))


def test_claims_that_vanish_or_appear_are_reported():
    assert "is committed but did not come out" in differences([stored()], [])[0]
    assert "came out but is not committed" in differences([], [stored()])[0]
    assert "(number 2)" in differences([stored(), stored()], [stored()])[0]


@pytest.mark.parametrize("now, problems", [(True, 0), (False, 1)])
def test_expectations_must_come_out_alike(now, problems):
    assert len(differences([{"name": "x", "passed": True}], [{"name": "x", "passed": now}])) == problems


def test_a_card_outside_a_notebook_is_plain_text(capsys):
    claim("lora-params", LORA)
    assert "lora-params: holds" in capsys.readouterr().out
