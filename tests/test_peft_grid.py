"""The comparison of methods: what one run is, how learning rates are found, what the file of results says."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from llmcourse import zoo
from llmcourse.claims import LEDGER
from llmcourse.fine_tuning.classify import LabelWords
from llmcourse.peft import commands, contest, grid
from llmcourse.peft.contest import IN_CONTEXT, METHODS, Run, Setting, Training

SMALL, TWIN = "tiny-bert-small", "twin-irony"
SHORT = Training(steps=3, size=4, validated=20, tested=30)
TEXTS = ["What a lovely morning: the roof fell in.", "The soup was warm. I liked it."]


def setting(method: str = "LoRA", **other: object) -> Setting:
    return Setting(**({"model": SMALL, "twin": TWIN, "method": method} | other))


# ---- one run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("typed", "meant"), [("Lora", "LoRA"), ("prefx tuning", "prefix tuning"), ("ia-3", "IA3")])
def test_an_unknown_method_is_refused_with_the_nearest(typed, meant):
    with pytest.raises(ValueError, match=f'did you mean "{meant}"'):
        contest.enter(setting(typed), 0)


@pytest.mark.parametrize("name", [name for name in METHODS if name != IN_CONTEXT])
def test_every_method_trains_what_it_says_and_no_more(name):
    """The head always; of the body's own weights none, but for full fine-tuning and BitFit's biases."""
    entered = contest.enter(setting(name), 0)
    learning = {n for n, p in entered.classifier.named_parameters() if p.requires_grad}
    assert {"head.weight", "head.bias"} <= learning
    own = {f"body.{n}" for n, _ in zoo.load(SMALL)[0].base_model.named_parameters()} & learning
    if name == "full fine-tuning":
        assert entered.counts()["trained"] == entered.counts()["total"]
    else:
        assert all(n.endswith(".bias") for n in own) and bool(own) == (name == "BitFit")


@pytest.mark.parametrize("name", ["full fine-tuning", "LoRA", "MAM"])
def test_a_run_depends_on_its_setting_and_its_seed_alone(name):
    """Two calls agree in everything but the time; another seed does not."""
    first, again, other = (contest.run(setting(name), seed, 1e-3, SHORT)[0] for seed in (0, 0, 1))
    assert replace(first, seconds=0) == replace(again, seconds=0)
    assert first.loss != other.loss


@pytest.mark.parametrize("name", ["prompt tuning", "P-tuning v2", "LoRA"])
def test_the_head_reads_the_last_token_of_each_text(name):
    """Alone or in a batch with a longer text, and with virtual tokens in front: the same answer."""
    classifier = contest.enter(setting(name), 0).classifier.eval()
    torch.testing.assert_close(classifier.log_probs(TEXTS)[1:], classifier.log_probs(TEXTS[1:]), rtol=1e-4, atol=1e-5)
    seen = {}
    classifier.head.register_forward_hook(lambda _, args, __: seen.update(read=args[0]))
    body = classifier.body.register_forward_hook(lambda _, __, out: seen.update(states=out.last_hidden_state))
    classifier.log_probs(TEXTS[1:])
    body.remove()
    torch.testing.assert_close(seen["read"], seen["states"][:, -1])


def test_a_run_that_diverges_scores_nothing_and_stops_nobody():
    run, _ = contest.run(setting("full fine-tuning"), 0, 1e30, SHORT)
    assert (run.f1, run.loss) == (0.0, None)


def test_labels_are_drawn_evenly_and_differently_by_seed():
    examples = contest._examples("twin-stance", "train")
    drawn = examples.some(5, 0)
    assert sorted(drawn.labels) == [0] * 5 + [1] * 5 + [2] * 5
    assert set(drawn.texts) <= set(examples.texts) and drawn.texts != examples.some(5, 1).texts
    assert drawn == examples.some(5, 0) and examples.some(0, 0) == examples


@pytest.mark.parametrize("name", ["LoRA", "BitFit", "prefix tuning", "head only"])
def test_what_is_kept_makes_the_trained_model_again(name):
    """A fresh contestant of another seed, given the kept tensors, answers as the trained one."""
    _, learned = contest.run(setting(name), 0, 1e-2, SHORT)
    fresh = contest.enter(setting(name), 5)
    kept = {key: t.detach().clone() for key, t in learned.kept().items()}
    if fresh.handle:
        fresh.handle.fill({key: t for key, t in kept.items() if key in fresh.handle.all_tensors()})
    fresh.classifier.head.load_state_dict({"weight": kept["head.weight"], "bias": kept["head.bias"]})
    torch.testing.assert_close(fresh.classifier.log_probs(TEXTS), learned.classifier.log_probs(TEXTS), rtol=1e-4, atol=1e-5)


def test_a_file_is_as_large_as_what_is_kept():
    """Four bytes a number, and a little for the names."""
    run, learned = contest.run(setting("LoRA"), 0, 1e-3, SHORT)
    numbers = sum(t.numel() for t in learned.kept().values())
    assert numbers == run.trained and 4 * numbers < run.file < 4 * numbers + 6000


def test_peak_bytes_are_those_held_at_once():
    """Two megabytes one after the other are one at a time."""

    def twice():
        for _ in range(2):
            torch.zeros(250_000).sum()

    assert 1_000_000 <= contest.peak_bytes(twice) < 1_200_000


def test_full_fine_tuning_needs_the_memory_of_gradients_and_moments():
    """Three times the weights more than the head alone needs, but for what the latter keeps of its forward pass."""
    full, head = (contest.run(setting(name), 0, 1e-3, SHORT, memory=True)[0] for name in ("full fine-tuning", "head only"))
    assert full.memory - head.memory > 0.95 * 3 * 4 * full.total
    assert contest.run(setting(), 0, 1e-3, SHORT)[0].memory is None


@pytest.mark.parametrize("model", ["tiny-t5-mini", "tiny-gpt-small"])
@pytest.mark.parametrize("twin", contest.WORDS)
def test_label_words_are_one_token_each(model, twin):
    """So that one pass can judge them all."""
    loaded, tokenizer = zoo.load(model)
    lead = "" if loaded.config.is_encoder_decoder else " "
    answers = contest._pattern(loaded, twin).answers(tokenizer, lead)
    assert [len(answer) for answer in answers] == [1] * len(answers)


def test_one_pass_over_a_decoder_says_what_a_pass_for_each_word_says():
    """Up to the normalisation over the words."""
    fast = contest.enter(setting("IA3", model="tiny-gpt-small"), 0).classifier
    slow = LabelWords(fast.model, fast.tokenizer, fast.names, fast.verbaliser)
    torch.testing.assert_close(fast.log_probs(TEXTS), slow.log_probs(TEXTS), rtol=1e-3, atol=1e-4)


def test_examples_in_the_context_stand_before_the_text_and_nothing_learns():
    run, entered = contest.run(setting(IN_CONTEXT, model="tiny-gpt-small", labels=2), 0, 0.0, SHORT)
    asked = entered.classifier.verbaliser.prompt(TEXTS[0])
    assert asked.count(" Answer: ") == 4 and asked.endswith(f"{TEXTS[0]} Answer:")
    assert (run.trained, run.loss, run.seconds) == (0, None, 0)


def test_an_average_score_tells_no_class_in_the_context():
    """Added to every text's scores of one class, it changes nothing."""
    entered = contest.enter(setting(IN_CONTEXT, model="tiny-gpt-small", labels=1), 0).classifier
    before = entered.log_probs(TEXTS)
    scores = type(entered).scores
    entered.scores = lambda texts: scores(entered, texts) + torch.tensor([0.0, 3.0])
    torch.testing.assert_close(entered.log_probs(TEXTS), before, rtol=1e-3, atol=0.05)


def test_a_language_model_is_refused_a_twin_without_words():
    with pytest.raises(ValueError, match="twin-ag-news"):
        contest.enter(setting(model="tiny-t5-mini", twin="twin-ag-news"), 0)


# ---- the grid ---------------------------------------------------------------------------------------------------------

PLAN = grid.Plan(
    models=(SMALL,), twins=(TWIN,), methods=("head only", "LoRA"), margins=(), ranks=(4, 8), labels=(4, 0), few=("LoRA",),
    family=("tiny-t5-mini",), decoder="tiny-gpt-small", shots=1, seeds=(0, 1), rank_seeds=(0, 1, 2), sweep_seeds=(0, 1),
    training=SHORT,
)  # fmt: skip


def invented(what: Setting, seed: int, lr: float, split: str = "test", f1: float | None = None) -> Run:
    """Best at a rate of 0.1, worse by ten points for every factor of ten."""
    score = 90 - 10 * abs(torch.tensor(lr or 0.1).log10().item() + 1) + seed / 10 if f1 is None else f1
    costs = {"loss": 0.5, "trained": 100 * what.rank, "total": 10_000, "seconds": 1.0, "file": 400, "memory": 10**7}
    return Run(**vars(what), seed=seed, lr=lr, split=split, f1=score, **costs)


@pytest.fixture
def runs(monkeypatch):
    """`contest.run` replaced by an invention; what was asked for, in order."""
    asked = []

    def run(what, seed, lr, training, *, split="test", step=lambda: None, memory=False):
        asked.append((what, seed, lr, split))
        return invented(what, seed, lr, split), contest.Contestant(what, contest.Classifier(), None)

    monkeypatch.setattr(grid, "run", run)
    return asked


def measured(tmp_path, plan=PLAN) -> grid.Measured:
    return grid.measure(plan, out=tmp_path / "grid.json", kept=tmp_path / "kept", bar=False)


def test_the_search_goes_on_while_the_best_rate_is_at_an_end(tmp_path, runs):
    """The chosen rate has a worse one on either side; all rates are judged with the seed kept for it."""
    found = measured(tmp_path)
    for name in ("LoRA", "head only"):
        scores = {run.lr: run.f1 for run in found.of(model=SMALL, twin=TWIN, method=name, split="validation")}
        chosen, ladder = found.rate(setting(name)), sorted(scores)
        place = ladder.index(chosen)
        assert 0 < place < len(ladder) - 1 and len(ladder) >= 3 and scores[chosen] == max(scores.values())
    assert {seed for _, seed, _, split in runs if split == "validation"} == {PLAN.choosing_seed}
    assert {lr for what, _, lr, _ in runs if what.method == IN_CONTEXT} == {0.0}


def test_a_rate_that_diverges_is_not_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(
        grid, "run", lambda what, seed, lr, *_, split="test", **__: (invented(what, seed, lr, split, 50.0 * (lr < 2e-3)), None)
    )
    assert measured(tmp_path).rate(setting("LoRA")) < 2e-3


def test_a_setting_of_two_sections_is_measured_once_and_kept_runs_never_again(tmp_path, runs):
    first = measured(tmp_path)
    assert len(runs) == len(set(runs)) == len(first.runs)
    assert measured(tmp_path) == replace(first, provenance=measured(tmp_path).provenance)
    assert len(runs) == len(first.runs)
    assert [run.seed for run in first.of(model=SMALL, twin=TWIN, method="LoRA")] == [0, 1, 2]  # the ranks ask for three


def test_after_an_interruption_the_same_call_goes_on(tmp_path, runs, monkeypatch):
    """What was finished is not made again, and the result is that of an unbroken call."""
    invent = grid.run

    def stops(*args, **options):
        if len(runs) == 7:
            runs.append(None)
            raise KeyboardInterrupt
        return invent(*args, **options)

    monkeypatch.setattr(grid, "run", stops)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path)
    assert not (tmp_path / "grid.json").exists() and len(list((tmp_path / "kept").iterdir())) == 7
    whole = measured(tmp_path)
    made = [each for each in runs if each]
    assert len(made) == len(set(made)) == len(whole.runs)


def test_other_training_or_other_weights_are_other_runs(tmp_path, runs, monkeypatch):
    """A model that was trained anew is measured anew."""
    first = measured(tmp_path)
    monkeypatch.setattr(grid, "_weights", lambda model: 1)
    measured(tmp_path)
    assert len(runs) == 2 * len(first.runs)


def test_runs_are_written_and_read_back(tmp_path, runs):
    found = measured(tmp_path)
    assert grid.load(tmp_path / "grid.json") == found
    assert json.loads((tmp_path / "grid.json").read_text(encoding="utf-8"))["command"] == grid.COMMAND


@pytest.mark.parametrize("text", ["{", "[]", '{"runs": []}', '{"plan": {}, "runs": [{"f1": 1}]}', '{"plan": 3, "runs": []}'])
def test_a_damaged_file_says_how_to_measure_again(tmp_path, text):
    path = tmp_path / "grid.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"grid.json is damaged .*{grid.COMMAND}"):
        grid.load(path)


def test_a_missing_file_says_how_to_measure(tmp_path):
    with pytest.raises(FileNotFoundError, match=grid.COMMAND):
        grid.load(tmp_path / "none.json")


def test_what_is_not_recorded_is_said_and_an_unknown_method_corrected(tmp_path, runs):
    found = measured(tmp_path)
    with pytest.raises(ValueError, match=r"no run with .*method='DoRA'"):
        found.of(method="DoRA")
    with pytest.raises(ValueError, match='did you mean "DoRA"'):
        found.of(method="dora")


def test_one_more_run_has_the_recorded_rate_and_a_seed_of_its_own(tmp_path, runs):
    found = measured(tmp_path)
    grid.one_more(found, setting("LoRA"))
    what, seed, lr, split = runs[-1]
    assert (what, lr, split) == (setting("LoRA"), found.rate(setting("LoRA")), "test")
    assert seed not in {run.seed for run in found.runs}


def test_the_interval_of_one_more_run_is_a_point_wide_on_either_side_at_least():
    plan = replace(PLAN, seeds=(0, 1))
    same = [invented(setting(), seed, 0.1, f1=80.0) for seed in plan.seeds]
    assert grid.Measured(runs=tuple(same), plan=plan).interval(setting()) == (80, 79, 81)
    apart = [invented(setting(), seed, 0.1, f1=80.0 + 4 * seed) for seed in plan.seeds]
    assert grid.Measured(runs=tuple(apart), plan=plan).interval(setting()).low < 70


def test_differences_are_paired_by_twin_and_seed():
    """Twins differ much, seeds a little, and the methods by exactly two points; what only one of them has is left out."""
    base, seeds = {"twin-irony": 60.0, "twin-stance": 90.0}, {"LoRA": (2, 0, 1, 3), "IA3": (0, 2, 4)}
    made = [
        invented(setting(name, twin=twin), seed, 0.1, f1=base[twin] + seed + 2 * (name == "LoRA"))
        for name in seeds
        for twin in sorted(base, reverse=name == "IA3")
        for seed in seeds[name]
    ]
    gain = grid.Measured(runs=tuple(made), plan=PLAN).minus({"method": "LoRA"}, {"method": "IA3"}, model=SMALL)
    assert gain == pytest.approx((2, 2, 2))


def full_plan(better: str) -> grid.Measured:
    """Every run of the whole plan, invented: `better` is ten points above the rest."""
    plan = grid.Plan()
    made = {
        (what, seed): invented(what, seed, 0.1, f1=80.0 + seed / 10 + 10 * (what.method == better))
        for section in plan.sections()
        for what in section.settings
        for seed in section.seeds
    }
    return grid.Measured(runs=tuple(made.values()), plan=plan)


def verdicts(better: str) -> dict[str, str]:
    numbers = full_plan(better).claim_numbers() | {}
    numbers["prefix-params"] |= {"share_at_published_size": 0.1}
    return {name: LEDGER[name].rule.judge(LEDGER[name].rule.validate(values)) for name, values in numbers.items()}


def test_claims_get_exactly_the_numbers_they_need():
    """`validate` refuses any other; the share at the published size comes from the notebook."""
    assert len(verdicts("LoRA")) == 7


@pytest.mark.parametrize(
    ("claim", "method"),
    [("prefix-params", "prefix tuning"), ("adapter-26", "Houlsby adapter"), ("bitfit-small", "BitFit"), ("ia3-fewest", "IA3")],
)
def test_a_claim_falls_when_treatment_and_baseline_change_places(claim, method):
    baseline = IN_CONTEXT if claim == "ia3-fewest" else "full fine-tuning"
    ours, theirs = (full_plan(better).claim_numbers()[claim] for better in (method, baseline))
    for numbers, sign in ((ours, 1), (theirs, -1)):
        effects = [value for name, value in numbers.items() if name.startswith("f1_")]
        assert effects and all(sign * effect.low > 0 for effect in effects)


def test_equal_methods_are_a_gap_that_does_not_close():
    assert verdicts("LoRA")["prompt-scale"] == verdicts("prompt tuning")["prompt-scale"] == "does not hold here"


def test_measuring_is_a_command():
    assert list(commands.MEASUREMENTS) == ["peft"] and f"llmcourse measure {next(iter(commands.MEASUREMENTS))}" == grid.COMMAND


# ---- the file that ships ----------------------------------------------------------------------------------------------


def test_the_shipped_file_holds_every_run_of_its_plan():
    shipped = grid.load()
    for section in shipped.plan.sections():
        for what in section.settings:
            assert set(section.seeds) <= {run.seed for run in shipped.of(**vars(what))}, what


def test_every_shipped_rate_won_on_validation_texts_against_one_on_either_side():
    shipped = grid.load()
    for what in {what for section in shipped.plan.sections() for what in section.settings if what.method != IN_CONTEXT}:
        tried = {run.lr: run.f1 for run in shipped.of(**vars(what), split="validation")}
        chosen = shipped.rate(what)
        assert tried[chosen] == max(tried.values()) and min(tried) < chosen < max(tried), what
