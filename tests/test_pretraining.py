"""How tiny-gpt is made: batches by number, lessons in the right order, and a shipped model that is what its card says."""

import json
import math
import re
from itertools import islice
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from llmcourse import zoo
from llmcourse.pretraining import commands, making, recipe, skills
from llmcourse.pretraining.recipe import TINY_GPT, Mixture, Recipe, Stage, build_model, build_tokenizer, optimizers
from llmcourse.world import Question, World, split_of

SHIPPED = zoo.FOLDER / "tiny-gpt"
TOY = Recipe(
    steps=6,
    stages=(Stage(until=1.0, rows=2, length=64, shares={"copy": 0.5, "review": 0.5}, sizes={"copy": (3, 3)}),),
    vocab_size=300,
    width=16,
    layers=1,
    heads=2,
    kv_heads=1,
    mlp_width=32,
)


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


@pytest.fixture(scope="module")
def tokenizer(world: World):
    return build_tokenizer(world, TINY_GPT, documents=1500)


@pytest.fixture(scope="module")
def mixture(world: World, tokenizer) -> Mixture:
    return Mixture(world, tokenizer, TINY_GPT)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe of seconds under the name "toy", measured on one skill."""
    monkeypatch.setitem(recipe.RECIPES, "toy", TOY)
    monkeypatch.setattr(skills, "SKILLS", {"feeling of a review": skills.SKILLS["feeling of a review"]})
    monkeypatch.setattr(making, "build_tokenizer", lambda world, recipe: build_tokenizer(world, recipe, documents=300))
    monkeypatch.setattr(making, "bits_per_byte", lambda *args: 1.0)
    monkeypatch.setattr(making, "measure", lambda *args, **options: skills.measure(*args, **options | {"asked": 4}))


# ---------------------------------------------------------------------------------------------------------------- tokenizer


@pytest.mark.parametrize("text", ["Ada Bell lives in Mill Lane.\n", "naïve Zoë 漢字 🙂\t\0  end", ""])
def test_the_tokenizer_gives_any_text_back(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_every_digit_is_a_token_of_its_own(tokenizer) -> None:
    ids = tokenizer("In 1987, 12 + 305", add_special_tokens=False)["input_ids"]
    assert [piece for piece in map(tokenizer.decode, ids) if any(c.isdigit() for c in piece)] == list("198712305")


def test_every_encoding_begins_with_bos(tokenizer) -> None:
    assert [tokenizer.decode(row[0]) for row in tokenizer(["a", "Question:"])["input_ids"]] == ["<|bos|>"] * 2


def test_the_tokenizer_has_as_many_tokens_as_the_recipe_says(tokenizer) -> None:
    assert len(tokenizer) == TINY_GPT.vocab_size


def test_the_chat_template_marks_each_turn_and_opens_the_answer(tokenizer) -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|><|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert sum(i < len(recipe.SPECIAL_TOKENS) for i in ids) == 6


def test_the_same_town_gives_the_same_merges(world: World) -> None:
    first, second = (build_tokenizer(world, TOY, documents=300).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


# ---------------------------------------------------------------------------------------------------------------- batches


def test_a_batch_depends_on_its_number_alone(world: World, tokenizer, mixture: Mixture) -> None:
    mixture(3)
    again = Mixture(world, tokenizer, TINY_GPT)
    torch.testing.assert_close(mixture(7)["input_ids"], again(7)["input_ids"], rtol=0, atol=0)
    assert not torch.equal(mixture(7)["input_ids"], mixture(8)["input_ids"])


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_batch_has_the_shape_of_its_stage(mixture: Mixture, share: float) -> None:
    step = int(share * TINY_GPT.steps)
    stage = mixture.stage(step)
    assert share < stage.until
    assert mixture(step)["input_ids"].shape == (stage.rows, stage.length)


def test_every_row_begins_with_a_document(mixture: Mixture, tokenizer) -> None:
    assert (mixture(0)["input_ids"][:, 0] == tokenizer.bos_token_id).all()


def test_copying_and_texts_about_one_stranger_come_first(mixture: Mixture) -> None:
    first, *later = TINY_GPT.stages
    assert first.sizes["context"] == (1, 1)
    assert all(first.shares["copy"] > stage.shares["copy"] for stage in later)
    assert "sum-steps" not in first.shares


@pytest.mark.parametrize("stage", TINY_GPT.stages)
def test_sums_with_steps_and_answer_only_get_equal_shares(stage: Stage) -> None:
    assert stage.shares.get("sum-steps") == stage.shares.get("sum-direct")
    assert sum(stage.shares.values()) == pytest.approx(1)


def test_shares_are_shares_of_the_tokens(mixture: Mixture, tokenizer) -> None:
    counts = {"Repeat": 0, "Text": 0, "Sort": 0}
    for step in range(40):
        for document in re.split(re.escape("<|eos|>"), "".join(tokenizer.batch_decode(mixture(step)["input_ids"]))):
            kind = document.removeprefix("<|bos|>").split(":")[0]
            counts[kind] = counts.get(kind, 0) + len(tokenizer(document)["input_ids"])
    shares = {kind: n / sum(counts.values()) for kind, n in counts.items()}
    assert shares["Repeat"] == pytest.approx(0.35, abs=0.05)
    assert shares["Text"] == pytest.approx(0.35, abs=0.05)
    assert shares["Sort"] == pytest.approx(0.10, abs=0.04)


# ---------------------------------------------------------------------------------------------------------------- model


def test_initial_weights_have_standard_deviation_one_over_root_width(world: World) -> None:
    model = build_model(TOY, build_tokenizer(world, TOY, documents=300))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    assert torch.cat([p.flatten() for p in matrices]).std().item() == pytest.approx(1 / math.sqrt(TOY.width), rel=0.05)


def test_every_parameter_has_one_optimizer_and_only_the_blocks_matrices_have_muon(world: World) -> None:
    model = build_model(TOY, build_tokenizer(world, TOY, documents=300))
    muon, adamw = optimizers(TOY, model)
    named = {id(p): name for name, p in model.named_parameters()}
    held = [[named[id(p)] for group in o.param_groups for p in group["params"]] for o in (muon, adamw)]
    assert sorted(held[0] + held[1]) == sorted(named.values())
    assert all("proj" in name for name in held[0])
    assert not any("proj" in name for name in held[1])


# ---------------------------------------------------------------------------------------------------------------- skills


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)]
)
def test_wilsons_interval_has_its_tabulated_values(right: int, asked: int, low: float, high: float) -> None:
    assert skills.wilson(right, asked) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("name", skills.SKILLS)
def test_skills_are_measured_on_the_test_split(world: World, name: str) -> None:
    questions = list(islice(skills.questions(world, skills.SKILLS[name]), 20))
    assert len(questions) == 20
    if skills.SKILLS[name].kind in ("closed-book", "sum-steps", "sum-direct", "review"):
        assert {split_of(question.prompt) for question in questions} == {"test"}


def test_negated_reviews_hold_a_negation_in_every_sentence(world: World) -> None:
    for question in islice(skills.questions(world, skills.SKILLS["feeling of a review, negated"]), 30):
        review = question.prompt.removeprefix("Review:").removesuffix("\nFeeling:")
        sentences = re.findall(r"[^.]+\.", review)
        assert all(re.search(r" not | never |Nobody ", sentence) for sentence in sentences)


@pytest.mark.skipif(not SHIPPED.exists(), reason="no tiny-gpt ships yet")
@pytest.mark.parametrize("name", ["answer from a text about 2 strangers", "3-step sums, with steps", "feeling of a review"])
def test_one_forward_pass_agrees_with_greedy_decoding(world: World, name: str) -> None:
    model, tokenizer = zoo.load("tiny-gpt")
    items = list(islice(skills.questions(world, skills.SKILLS[name]), 12))
    said = [_greedy(model, tokenizer, item) for item in items]
    assert skills.answers_right(model, tokenizer, items) == [
        text == item.completion for text, item in zip(said, items, strict=True)
    ]


def _greedy(model, tokenizer, item: Question) -> str:
    ids = torch.tensor([tokenizer(item.prompt)["input_ids"]])
    new = len(tokenizer(item.completion, add_special_tokens=False)["input_ids"])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.skipif(not SHIPPED.exists(), reason="no tiny-gpt ships yet")
def test_the_verdict_does_not_depend_on_the_batch(world: World) -> None:
    model, tokenizer = zoo.load("tiny-gpt")
    items = [world.question(kind, i) for i in range(6) for kind in ("context", "copy", "sorting")]
    alone, together = (skills.answers_right(model, tokenizer, items, batch_size=size) for size in (1, 18))
    assert alone == together
    assert 0 < sum(alone) < len(items)


# ---------------------------------------------------------------------------------------------------------------- making


def test_a_run_that_was_stopped_ends_with_the_weights_of_an_unbroken_one(
    toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCOURSE_HOME", str(tmp_path / "unbroken"))
    unbroken = making.make("toy", out=tmp_path / "a")
    monkeypatch.setenv("LLMCOURSE_HOME", str(tmp_path / "stopped"))
    batch = Mixture.__call__
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Mixture, "__call__", lambda self, step: _press_ctrl_c() if step == 3 else batch(self, step))
        making.make("toy", out=tmp_path / "b")
    assert not (tmp_path / "b").exists()
    resumed = making.make("toy", out=tmp_path / "b")
    assert (unbroken / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()


def _press_ctrl_c() -> None:
    raise KeyboardInterrupt


def test_the_old_model_stays_until_the_new_one_is_whole(toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "model"
    out.mkdir()
    (out / "old.txt").write_text("old", encoding="utf-8")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(making, "card", lambda *args: _fail())
        making.make("toy", out=out)
    assert [path.name for path in out.iterdir()] == ["old.txt"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    making.make("toy", out=out)
    assert not (out / "old.txt").exists()
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "training.json"} <= {p.name for p in out.iterdir()}


def _fail() -> str:
    raise OSError("disk full")


def test_the_old_model_comes_back_when_the_exchange_fails_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "model", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    (old / "old.txt").write_text("old", encoding="utf-8")
    replace = making.os.replace
    monkeypatch.setattr(making.os, "replace", lambda a, b: _fail() if Path(a) == new else replace(a, b))
    with pytest.raises(OSError, match="disk full"):
        making._exchange(new, old)
    assert (old / "old.txt").read_text(encoding="utf-8") == "old"


def test_what_is_made_loads_as_bfloat16_llama_with_its_tokenizer(toy: None, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = making.make("toy", out=tmp_path / "model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert (model.config.model_type, model.dtype) == ("llama", torch.bfloat16)
    assert tokenizer.bos_token == "<|bos|>"
    assert tokenizer.chat_template == recipe.CHAT_TEMPLATE


def test_another_number_of_steps_never_takes_the_shipped_weights_place(toy: None, learner_home: Path) -> None:
    folder = making.make("toy", steps=2)
    assert learner_home in folder.parents
    assert json.loads((folder / "training.json").read_text(encoding="utf-8"))["steps"] == 2


def test_training_has_the_threads_asked_for_and_they_are_put_back(
    toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, during = torch.get_num_threads(), []
    monkeypatch.setattr(making, "_train", lambda *args: during.append(torch.get_num_threads()) or _fail())
    with pytest.raises(OSError, match="disk full"):
        making.make("toy", out=tmp_path / "model", threads=before + 1)
    assert (during, torch.get_num_threads()) == ([before + 1], before)


def test_an_unknown_model_is_refused_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='no recipe for "tiny-gtp"; choose one of tiny-gpt'):
        making.make("tiny-gtp", out=tmp_path)


def test_a_number_of_steps_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps is 0; choose 1 or more"):
        making.make("tiny-gpt", out=tmp_path, steps=0)


def test_bits_per_byte_of_a_uniform_model_are_those_of_its_vocabulary(world: World) -> None:
    """Every token then costs log2(vocabulary) bits, whatever the text."""
    tokenizer = build_tokenizer(world, TOY, documents=300)
    model = build_model(TOY, tokenizer).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    texts = [world.document(kind, 0, "test") for kind in making.KINDS]
    tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    expected = tokens * math.log2(TOY.vocab_size) / sum(len(text.encode()) for text in texts)
    assert making.bits_per_byte(model, tokenizer, world, documents=1) == pytest.approx(expected, rel=1e-4)


# ----------------------------------------------------------------------------------------------------------- what ships

shipped = pytest.mark.skipif(not SHIPPED.exists(), reason="no tiny-gpt ships yet")


@shipped
def test_the_shipped_model_is_at_most_five_megabytes() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 5_000_000


@shipped
def test_the_shipped_model_was_made_by_this_recipe_from_this_town(world: World) -> None:
    log = json.loads((SHIPPED / "training.json").read_text(encoding="utf-8"))
    assert log["steps"] == TINY_GPT.steps
    assert zoo.load("tiny-gpt")[1].get_vocab() == build_tokenizer(world, TINY_GPT).get_vocab()


@shipped
def test_the_card_tells_the_numbers_of_the_log() -> None:
    log = json.loads((SHIPPED / "training.json").read_text(encoding="utf-8"))
    text = (SHIPPED / "README.md").read_text(encoding="utf-8")
    for number in (f"{log['parameters']:,}", f"{log['tokens']:,}", f"{log['minutes']} minutes", f"{log['loss']} nats"):
        assert number in text


@shipped
@pytest.mark.parametrize("name", ["closed-book facts, famous people", "answer from a text about 1 stranger"])
def test_the_shipped_model_still_has_the_skills_of_its_card(world: World, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = zoo.load("tiny-gpt")
    monkeypatch.setattr(skills, "SKILLS", {name: skills.SKILLS[name]})
    text = (SHIPPED / "README.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    low, high = (float(number) / 100 for number in re.search(r"([\d.]+)% – ([\d.]+)%", row).groups())
    assert low <= skills.measure(model, tokenizer, world, asked=100)[name].share <= high + 0.05


# ---------------------------------------------------------------------------------------------------------------- commands


def test_the_command_reports_an_unknown_model_in_one_line_and_fails() -> None:
    app = typer.Typer()
    app.callback()(lambda: None)
    commands.register(app)
    result = CliRunner().invoke(app, ["pretrain", "tiny-gtp"])
    assert result.exit_code == 1
    assert "choose one of tiny-gpt" in result.output
    assert "Traceback" not in result.output


@shipped
def test_the_measurement_prints_one_row_a_skill(toy: None, capsys: pytest.CaptureFixture[str]) -> None:
    commands.MEASUREMENTS["skills"]()
    assert "feeling of a review" in capsys.readouterr().out
