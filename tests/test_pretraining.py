"""How the embedded models are made: batches by number, lessons in the right order, honest measurements, and weights that ship."""

import copy
import json
import lzma
import math
import re
import signal
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from llmcourse import zoo
from llmcourse.cli import app
from llmcourse.pretraining import entropy, making, recipe, skills, transfer, untaught
from llmcourse.pretraining.marks import measure_marks
from llmcourse.pretraining.recipe import (
    RECIPES,
    Mixture,
    Recipe,
    Stage,
    build_model,
    build_tokenizer,
    optimizers,
    reading_loss,
)
from llmcourse.pretraining.transfer import Classified, Summaries, Summarised, Transfer
from llmcourse.world import CUTOFF, KINDS, Draw, Question, World, instructions, preferences, tools
from llmcourse.world.kinds import facts
from llmcourse.world.marked import MARKS

FAMILIES = {"gpt": "tiny-gpt", "bert": "tiny-bert", "t5": "tiny-t5"}
GPTS = [name for name, made in RECIPES.items() if made.family == "gpt"]
STAGES = [pytest.param(stage, id=f"{name}-{stage.until}") for name, made in RECIPES.items() for stage in made.stages]
CHAT_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
FORM = {"copy": 0.5, "review": 0.5}
TOYS = {
    family: Recipe(
        family=family,
        steps=6,
        stages=(Stage(until=1.0, rows=2, length=64, shares=FORM, sizes={"copy": (3, 3)}, marked=int(family != "gpt")),),
        vocab_size=300,
        width=16,
        layers=1,
        heads=2,
        kv_heads=1 if family == "gpt" else 2,
        mlp_width=32,
    )
    for family in FAMILIES
}


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


@cache
def tokenizer_of(family: str):
    return build_tokenizer(World(0), RECIPES[FAMILIES[family]], documents=800)


@cache
def mixture_of(name: str) -> Mixture:
    return Mixture(World(0), tokenizer_of(RECIPES[name].family), RECIPES[name])


@cache
def toy_tokenizer(family: str):
    return build_tokenizer(World(0), TOYS[family], documents=300)


def toy_model(family: str):
    return build_model(TOYS[family], toy_tokenizer(family)).eval()


@pytest.fixture
def tokenizer():
    return tokenizer_of("gpt")


def quicken(patch: pytest.MonkeyPatch) -> None:
    """A recipe of seconds for each family ("toy-gpt" …), not compiled, and measured on next to nothing."""
    for family, toy in TOYS.items():
        patch.setitem(RECIPES, f"toy-{family}", toy)
    patch.setattr(making, "build_tokenizer", lambda world, recipe: toy_tokenizer(recipe.family))
    patch.setattr(making, "_compiled_loss", lambda: reading_loss)
    patch.setattr(making, "measure_marks", lambda *args, **options: measure_marks(*args, **options | {"asked": 4}))
    patch.setattr(skills, "SKILLS", {"feeling of a review": skills.SKILLS["feeling of a review"]})
    patch.setattr(making, "measure", lambda *args, **options: skills.measure(*args, **options | {"asked": 4}))
    patch.setattr(making, "measure_untaught", lambda *args: {})
    patch.setattr(making, "accepted_share", lambda *args: entropy.accepted_share(*args, texts=2, tokens=3))
    patch.setattr(making, "held_out", lambda world, shares: entropy.held_out(world, {"copy": 1.0}, 1000))
    found = Transfer(twin="twin-irony", few=(0.5, 0.7), few_random=(0.2, 0.4), all=(0.81,), best=0.9)
    patch.setattr(making, "measure_transfer", lambda *args, **options: [found])
    told = Summaries(tuned=(0.8, 0.9), tuned_random=(0.3, 0.5), first_sentence=0.2)
    patch.setattr(making, "measure_summaries", lambda *args: told)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


@pytest.fixture(scope="module", params=TOYS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A toy of each family, made once without interruption."""
    home = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMCOURSE_HOME", str(home))
        quicken(patch)
        return request.param, making.make(f"toy-{request.param}", out=home / "model")


# ---------------------------------------------------------------------------------------------------------------- tokenizer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["Ada Bell lives in Mill Lane.\n", "naïve Zoë 漢字 🙂\t\0  end", ""])
def test_the_tokenizer_gives_any_text_back(family: str, text: str) -> None:
    ids = tokenizer_of(family)(text)["input_ids"]
    assert tokenizer_of(family).decode(ids, skip_special_tokens=True) == text


def test_every_digit_is_a_token_of_its_own(tokenizer) -> None:
    ids = tokenizer("In 1987, 12 + 305", add_special_tokens=False)["input_ids"]
    assert [piece for piece in map(tokenizer.decode, ids) if any(c.isdigit() for c in piece)] == list("198712305")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merges_are_the_same_for_every_family(family: str) -> None:
    bpe, gpts = (json.loads(tokenizer_of(each).backend_tokenizer.to_str()) for each in (family, "gpt"))
    assert bpe["model"] == gpts["model"]
    assert [token["content"] for token in bpe["added_tokens"]] == list(recipe.SPECIAL_TOKENS)


@pytest.mark.parametrize(
    ("family", "one", "two"),
    [
        ("gpt", "<|bos|>a", "<|bos|>ab"),
        ("bert", "<|bos|>a<|sep|>", "<|bos|>a<|sep|>b<|sep|>"),
        ("t5", "a<|eos|>", "a<|eos|>b<|eos|>"),
    ],
)
def test_every_family_frames_one_text_and_two_in_its_own_way(family: str, one: str, two: str) -> None:
    tokenizer = tokenizer_of(family)
    assert tokenizer.decode(tokenizer("a")["input_ids"]) == one
    assert tokenizer.decode(tokenizer("a", "b")["input_ids"]) == two


def test_the_second_of_two_texts_and_its_end_are_of_type_one() -> None:
    assert tokenizer_of("bert")("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]
    assert tokenizer_of("bert").cls_token == "<|bos|>"


def test_only_gpt_is_filled_up_on_the_left_because_it_writes_on_at_the_right() -> None:
    assert {family: tokenizer_of(family).padding_side for family in FAMILIES} == {"gpt": "left", "bert": "right", "t5": "right"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizer_has_as_many_tokens_as_the_recipe_says(family: str) -> None:
    assert len(tokenizer_of(family)) == RECIPES[FAMILIES[family]].vocab_size


def test_the_chat_template_marks_each_turn_and_opens_the_answer(tokenizer) -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|><|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert sum(i < len(recipe.SPECIAL_TOKENS) for i in ids) == 6


def test_the_same_town_gives_the_same_merges(world: World) -> None:
    first, second = (build_tokenizer(world, TOYS["gpt"], documents=300).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


# ---------------------------------------------------------------------------------------------------------------- recipes


@cache
def parameters() -> dict[str, int]:
    """How many parameters each recipe makes, counted without memory for them."""
    ids = SimpleNamespace(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    builders = {"gpt": recipe._llama, "bert": recipe._bert, "t5": recipe._t5}
    with torch.device("meta"):
        return {name: sum(p.numel() for p in builders[r.family](r, ids).parameters()) for name, r in RECIPES.items()}


@pytest.mark.parametrize(
    ("larger", "smaller"),
    [
        ("tiny-gpt", "tiny-gpt-small"),
        ("tiny-bert", "tiny-bert-small"),
        ("tiny-t5", "tiny-t5-small"),
        ("tiny-t5-small", "tiny-t5-mini"),
    ],
)
def test_the_sizes_of_a_family_are_four_times_apart_or_more(larger: str, smaller: str) -> None:
    assert parameters()[larger] >= 4 * parameters()[smaller]


def test_all_models_together_take_48_megabytes_in_bfloat16_at_most() -> None:
    assert len(parameters()) == 7
    assert 2 * sum(parameters().values()) <= 48_000_000


@pytest.mark.parametrize("stage", STAGES)
def test_the_shares_of_a_stage_are_of_known_kinds_and_sum_to_one(stage: Stage) -> None:
    assert set(stage.shares) | set(stage.sizes) <= set(KINDS)
    assert sum(stage.shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("stage", STAGES)
def test_sums_with_steps_and_answer_only_get_equal_shares_and_sizes(stage: Stage) -> None:
    assert stage.shares.get("sum-steps") == stage.shares.get("sum-direct")
    assert stage.sizes.get("sum-steps") == stage.sizes.get("sum-direct")


@pytest.mark.parametrize("name", RECIPES)
def test_the_stages_follow_one_another_to_the_end_of_the_run(name: str) -> None:
    ends = [0.0, *(stage.until for stage in RECIPES[name].stages)]
    assert ends == sorted(set(ends))
    assert ends[-1] == 1.0


@pytest.mark.parametrize("name", GPTS)
def test_copying_and_texts_about_one_stranger_come_first(name: str) -> None:
    first, *later = RECIPES[name].stages
    assert first.sizes["context"] == (1, 1)
    assert all(first.shares["copy"] > stage.shares["copy"] for stage in later)
    assert "sum-steps" not in first.shares


@pytest.mark.parametrize("name", GPTS)
def test_texts_about_two_strangers_come_before_those_about_three(name: str) -> None:
    sizes = [stage.sizes.get("context", KINDS["context"][1:]) for stage in RECIPES[name].stages]
    assert [largest for _, largest in sizes] == [1, 2, *[3] * (len(sizes) - 2)]


def test_another_number_of_steps_changes_nothing_else() -> None:
    assert RECIPES["tiny-gpt"].lasting(None) is RECIPES["tiny-gpt"]
    assert RECIPES["tiny-gpt"].lasting(7) == replace(RECIPES["tiny-gpt"], steps=7)


# ---------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_depends_on_its_number_alone(family: str) -> None:
    one, again = (Mixture(World(0), toy_tokenizer(family), TOYS[family]) for _ in range(2))
    other, first, second = one(4), one(3), again(3)
    parts = [(first, second), *([(first.pop("marked"), second.pop("marked"))] if family != "gpt" else [])]
    for ours, theirs in parts:
        assert all(torch.equal(ours[key], theirs[key]) for key in ours.keys() | theirs.keys())
    assert not torch.equal(first["input_ids"], other["input_ids"])


def test_a_batch_does_not_depend_on_how_its_tokenizer_was_called_before() -> None:
    tokenizer = build_tokenizer(World(0), TOYS["t5"], documents=300)
    before = Mixture(World(0), tokenizer, TOYS["t5"])(1)
    tokenizer(["one", "two three"], truncation=True, max_length=2, padding=True)
    assert torch.equal(Mixture(World(0), tokenizer, TOYS["t5"])(1)["input_ids"], before["input_ids"])


@pytest.mark.parametrize("name", RECIPES)
def test_every_step_belongs_to_the_stage_that_has_not_ended_yet(name: str) -> None:
    mixture, stages = mixture_of(name), RECIPES[name].stages
    lasts = [math.ceil(stage.until * RECIPES[name].steps) - 1 for stage in stages]
    assert tuple(map(mixture.stage, lasts)) == stages
    assert tuple(mixture.stage(last + 1) for last in lasts[:-1]) == stages[1:]


@pytest.mark.parametrize("stage", range(6))
def test_a_batch_of_a_gpt_has_the_shape_of_its_stage(stage: int) -> None:
    """Every row begins with a document, and is its own label: models move labels by themselves."""
    wanted = RECIPES["tiny-gpt"].stages[stage]
    batch = mixture_of("tiny-gpt")(round(wanted.until * RECIPES["tiny-gpt"].steps) - 1)
    assert batch["input_ids"].shape == (wanted.rows, wanted.length)
    assert (batch["input_ids"][:, 0] == tokenizer_of("gpt").bos_token_id).all()
    assert torch.equal(batch["input_ids"], batch["labels"])


def test_in_front_of_every_document_stands_bos_and_behind_it_eos() -> None:
    row = mixture_of("tiny-gpt")(RECIPES["tiny-gpt"].steps - 1)["input_ids"][0].tolist()
    bos, eos = tokenizer_of("gpt").bos_token_id, tokenizer_of("gpt").eos_token_id
    assert row.count(bos) > 1
    assert [i for i, token in enumerate(row) if token == bos] == [0, *(i + 1 for i, token in enumerate(row[:-1]) if token == eos)]


def test_no_chat_token_is_ever_trained_on() -> None:
    mixture, steps = mixture_of("tiny-gpt"), RECIPES["tiny-gpt"].steps
    chat = torch.tensor(tokenizer_of("gpt").convert_tokens_to_ids(list(CHAT_TOKENS)))
    ends = [round(stage.until * steps) - 1 for stage in RECIPES["tiny-gpt"].stages]
    assert not any(torch.isin(mixture(step)["input_ids"], chat).any() for step in ends)


def test_shares_are_shares_of_the_tokens(tokenizer) -> None:
    counts = Counter()
    for step in range(40):
        for document in re.split(
            re.escape("<|eos|>"), "".join(tokenizer.batch_decode(mixture_of("tiny-gpt")(step)["input_ids"]))
        ):
            counts[document.removeprefix("<|bos|>").split(":")[0]] += len(tokenizer(document)["input_ids"])
    assert counts["Repeat"] / counts.total() == pytest.approx(0.35, abs=0.05)
    assert counts["Text"] / counts.total() == pytest.approx(0.35, abs=0.05)
    assert counts["Sort"] / counts.total() == pytest.approx(0.12, abs=0.04)


class Watched(World):
    """A town that remembers which splits and numbers were asked for."""

    def __init__(self) -> None:
        super().__init__(0)
        self.splits, self.numbers = set(), []

    def measured(self, kind: str, index: int, split: str = "train", size: int | None = None) -> tuple[str, float]:
        self.splits.add(split)
        self.numbers.append(index)
        return super().measured(kind, index, split, size)

    def question(self, kind: str, index: int, split: str = "test", size: int | None = None) -> Question:
        self.splits.add(split)
        return super().question(kind, index, split, size)

    def facts_about(self, entity, split: str = "test") -> list[Question]:
        self.splits.add(split)
        return super().facts_about(entity, split)


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_are_made_of_training_text_numbered_below_a_billion(family: str) -> None:
    watched = Watched()
    Mixture(watched, toy_tokenizer(family), TOYS[family])(0)
    assert watched.splits == {"train"}
    assert max(watched.numbers) < 10**9


@cache
def masked_batches() -> tuple[dict[str, torch.Tensor], ...]:
    return tuple(mixture_of("tiny-bert")(step) for step in range(4))


def test_a_masked_batch_is_framed_as_the_tokenizer_frames_two_texts() -> None:
    """<|bos|> first, <|sep|> last and where type 0 ends, and nowhere else but by chance."""
    tokenizer, stage = tokenizer_of("bert"), RECIPES["tiny-bert"].stages[0]
    for batch in masked_batches():
        ids, types = batch["input_ids"], batch["token_type_ids"]
        assert ids.shape == types.shape == batch["labels"].shape == (stage.rows, stage.length)
        assert (ids[:, 0] == tokenizer.cls_token_id).all()
        assert (ids[:, -1] == tokenizer.sep_token_id).all()
        ends = types.argmax(1) - 1
        assert (ids.gather(1, ends[:, None]) == tokenizer.sep_token_id).all()
        assert torch.equal(types, (torch.arange(stage.length) > ends[:, None]).long())


def test_labels_stand_only_where_a_token_was_chosen_and_never_on_a_special_one() -> None:
    mask = tokenizer_of("bert").mask_token_id
    for batch in masked_batches():
        asked = batch["labels"] != -100
        assert (asked | (batch["input_ids"] != mask)).all()
        assert (batch["labels"][asked] >= len(recipe.SPECIAL_TOKENS)).all()


def test_fifteen_percent_are_chosen_of_which_a_tenth_stay_and_eight_tenths_are_hidden() -> None:
    labels, ids = (torch.cat([batch[key] for batch in masked_batches()]) for key in ("labels", "input_ids"))
    asked = labels != -100
    assert asked.float().mean().item() == pytest.approx(0.15, abs=0.015)
    assert (ids[asked] == tokenizer_of("bert").mask_token_id).float().mean().item() == pytest.approx(0.8, abs=0.04)
    assert (ids[asked] == labels[asked]).float().mean().item() == pytest.approx(0.1, abs=0.03)


def _spans(row: list[int], marks: list[int]) -> list[tuple[int, list[int]]]:
    """Each sentinel with the tokens behind it."""
    at = [i for i, token in enumerate(row) if token in marks]
    return [(row[a], row[a + 1 : b]) for a, b in zip(at, [*at[1:], len(row)], strict=True)]


def test_sentinels_stand_in_order_and_their_spans_complete_the_row() -> None:
    tokenizer, stage, pad = tokenizer_of("t5"), RECIPES["tiny-t5"].stages[0], tokenizer_of("t5").pad_token_id
    marks = tokenizer.convert_tokens_to_ids([f"<|extra_{i}|>" for i in range(recipe.SENTINELS)])
    batch = mixture_of("tiny-t5")(0)
    for row, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        ids = [token for token in row if token != pad]
        assert ids.pop() == tokenizer.eos_token_id == labels[-1]
        hidden = _spans(labels[:-1], marks)
        assert [mark for mark, _ in hidden] == marks[: len(hidden)] == [token for token in ids if token in marks]
        whole = [token for i in ids for token in (dict(hidden)[i] if i in marks else [i])]
        assert len(whole) == stage.length
        assert sum(len(span) for _, span in hidden) == round(recipe.NOISE * stage.length)
        assert min(whole) >= len(recipe.SPECIAL_TOKENS)


def test_spans_are_four_tokens_long_on_average() -> None:
    labels = mixture_of("tiny-t5")(1)["labels"]
    low = tokenizer_of("t5").convert_tokens_to_ids("<|extra_0|>")
    spans = ((labels >= low) & (labels < low + recipe.SENTINELS)).sum(1)
    assert (spans == round(recipe.NOISE * 128 / recipe.SPAN)).all()


GIVEN = {word for _, classes in MARKS.values() for words in classes.values() for word in words}


@cache
def short_part(name: str) -> dict[str, torch.Tensor]:
    """The rows of one text each whose words are hidden."""
    batch = mixture_of(name)(RECIPES[name].steps - 1)
    return {key: value[-RECIPES[name].stages[-1].short :] for key, value in batch.items() if key != "marked"}


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-t5"])
def test_words_are_hidden_in_texts_that_stand_alone_too(name: str) -> None:
    """Otherwise a reader takes every text that stands alone for one whose mark is asked for."""
    part, length = short_part(name), mixture_of(name)(RECIPES[name].steps - 1)["input_ids"].shape[1]
    lengths = part["attention_mask"].sum(1)
    assert (lengths < length / 2).all()
    assert torch.equal(part["attention_mask"] == 0, part["input_ids"] == tokenizer_of(RECIPES[name].family).pad_token_id)
    assert ((part["labels"] != -100).sum(1) >= (0 if name == "tiny-bert" else 3)).all()
    assert (part["labels"] != -100).sum() > len(lengths)


def test_a_text_that_stands_alone_is_framed_as_the_tokenizer_frames_one() -> None:
    tokenizer, part = tokenizer_of("bert"), short_part("tiny-bert")
    for row, seen in zip(part["input_ids"].tolist(), part["attention_mask"].sum(1).tolist(), strict=True):
        assert (row[0], row[seen - 1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        assert tokenizer.sep_token_id not in row[: seen - 1]
    assert (part["token_type_ids"] == 0).all()
    assert (part["labels"][:, 0] == -100).all()


@cache
def marked_part(name: str) -> dict[str, torch.Tensor]:
    return mixture_of(name)(RECIPES[name].steps - 1)["marked"]


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-t5"])
def test_marks_come_after_reading_which_goes_on_beside_them(name: str) -> None:
    first, last = RECIPES[name].stages
    assert first.marked == first.short == 0 < last.short < last.rows < last.marked
    assert "marked" not in mixture_of(name)(0)
    assert len(marked_part(name)["input_ids"]) == last.marked


def test_a_masked_model_is_asked_for_the_mark_at_the_first_place_and_sees_every_word() -> None:
    tokenizer, part = tokenizer_of("bert"), marked_part("tiny-bert")
    given = {tokenizer(f" {word}", add_special_tokens=False)["input_ids"][-1] for word in GIVEN}
    assert (part["input_ids"] != tokenizer.mask_token_id).all()
    assert (part["labels"][:, 1:] == -100).all()
    assert set(part["labels"][:, 0].tolist()) <= given
    assert (part["input_ids"][:, 0] == tokenizer.cls_token_id).all()


def test_a_t5_is_asked_to_write_the_mark_and_nothing_else() -> None:
    tokenizer = tokenizer_of("t5")
    labels = [[token for token in row if token != -100] for row in marked_part("tiny-t5")["labels"].tolist()]
    assert {row[-1] for row in labels} == {tokenizer.eos_token_id}
    assert {tokenizer.decode(row[:-1]).strip() for row in labels} <= GIVEN


def test_a_mark_is_one_token_behind_its_space_in_the_tokenizer_that_ships() -> None:
    tokenizer = zoo.load("tiny-gpt")[1]
    tokens = {word: tokenizer.tokenize(f" {word}") for word in GIVEN}
    assert all(found == (["Ġ", word] if word.isdigit() else [f"Ġ{word}"]) for word, found in tokens.items())


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-t5"])
def test_padding_is_hidden_and_nothing_else(name: str) -> None:
    part, pad = marked_part(name), tokenizer_of(RECIPES[name].family).pad_token_id
    assert torch.equal(part["attention_mask"] == 0, part["input_ids"] == pad)
    assert (part["attention_mask"] == 0).any()


def test_a_marked_text_stands_whole_between_the_tokens_that_frame_it() -> None:
    tokenizer = tokenizer_of("bert")
    for row, seen in zip(*(marked_part("tiny-bert")[key].tolist() for key in ("input_ids", "attention_mask")), strict=True):
        ids = row[: sum(seen)]
        assert ids == tokenizer(tokenizer.decode(ids[1:-1]))["input_ids"]
        assert tokenizer.decode(ids[1:-1]).endswith((".", "!", "?"))


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_the_loss_is_the_mean_of_hidden_words_and_marks_by_weight(family: str) -> None:
    batch, weight = Mixture(World(0), toy_tokenizer(family), TOYS[family])(0), recipe.MARK_WEIGHT[family]
    marked = batch["marked"]
    model = toy_model(family)
    with torch.no_grad():
        both = reading_loss(model, batch).item()
        words, marks = reading_loss(model, {k: v for k, v in batch.items() if k != "marked"}).item(), model(**marked).loss.item()
    assert words != marks
    assert both == pytest.approx((words + weight * marks) / (1 + weight), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------- positions


def test_a_masked_models_positions_begin_as_sinusoids() -> None:
    """Column 2i is a sine of frequency 10,000^(−2i/width), column 2i+1 its cosine."""
    table = toy_model("bert").bert.embeddings.position_embeddings.weight
    width = table.shape[1]
    for place, column in ((0, 1), (5, 0), (9, 4), (40, 7)):
        angle = place * 10_000 ** (-(column - column % 2) / width)
        wanted = math.sqrt(2 / width) * (math.cos(angle) if column % 2 else math.sin(angle))
        assert table[place, column].item() == pytest.approx(wanted, abs=1e-4)


def test_a_masked_models_positions_learn_a_tenth_as_fast() -> None:
    model = toy_model("bert")
    adamw = optimizers(TOYS["bert"], model)[1]
    rates = {id(p): group["lr"] for group in adamw.param_groups for p in group["params"]}
    embeddings = model.bert.embeddings
    words, places = (rates[id(table.weight)] for table in (embeddings.word_embeddings, embeddings.position_embeddings))
    assert places == pytest.approx(words / 10)


# ---------------------------------------------------------------------------------------------------------------- marks


class Saying(torch.nn.Module):
    """A BERT that expects the same token everywhere."""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token, self.config, self.device = token, SimpleNamespace(model_type="bert"), torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, **others: object) -> SimpleNamespace:
        logits = torch.nn.functional.one_hot(torch.full_like(input_ids, self.token), 2048)
        return SimpleNamespace(logits=logits.float())


def test_four_stars_are_right_where_five_were_given_and_two_are_not() -> None:
    tokenizer = tokenizer_of("bert")
    said = {stars: tokenizer(f" {stars}", add_special_tokens=False)["input_ids"][-1] for stars in "245"}
    good, alike, bad = (measure_marks(Saying(said[stars]), tokenizer, World(0), asked=40)["stars"] for stars in "452")
    assert good == alike
    assert good.right + bad.right == good.asked
    assert max(good.right, bad.right) == round(good.commonest * good.asked)


def test_marks_are_asked_in_the_wordings_of_the_split() -> None:
    watched = Watched()
    measure_marks(Saying(0), tokenizer_of("bert"), watched, asked=3, split="validation")
    assert watched.splits == {"validation"}


# ---------------------------------------------------------------------------------------------------------------- model


@pytest.mark.parametrize("family", ["gpt", "bert"])
def test_initial_weights_have_standard_deviation_one_over_root_width(family: str) -> None:
    """T5 has a scheme of its own."""
    matrices = [p for p in toy_model(family).parameters() if p.ndim == 2]
    deviation = torch.cat([p.flatten() for p in matrices]).std().item()
    assert deviation == pytest.approx(1 / math.sqrt(TOYS[family].width), rel=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_model_is_about_as_unsure_as_a_uniform_one(family: str) -> None:
    batch = Mixture(World(0), toy_tokenizer(family), TOYS[family])(0)
    with torch.no_grad():
        assert reading_loss(toy_model(family), batch).item() == pytest.approx(math.log(300), abs=1.2)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_batch_fits_its_model_and_gives_every_parameter_a_gradient(family: str) -> None:
    model = toy_model(family)
    reading_loss(model, Mixture(World(0), toy_tokenizer(family), TOYS[family])(0)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


BLOCKS = {"gpt": "model.layers.", "bert": "encoder.layer.", "t5": ".block."}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_one_optimizer_and_only_the_blocks_matrices_have_muon(family: str) -> None:
    model = toy_model(family)
    named = {id(p): name for name, p in model.named_parameters()}
    held = [[named[id(p)] for group in o.param_groups for p in group["params"]] for o in optimizers(TOYS[family], model)]
    assert sorted(held[0] + held[1]) == sorted(named.values())
    blocks = {name for name, p in model.named_parameters() if BLOCKS[family] in name and p.ndim == 2}
    assert set(held[0]) == {name for name in blocks if "relative_attention_bias" not in name}


# ---------------------------------------------------------------------------------------------------------------- skills


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (0, 0, 0.0, 1.0)],
)
def test_wilsons_interval_has_its_tabulated_values(right: int, asked: int, low: float, high: float) -> None:
    assert skills.wilson(right, asked) == pytest.approx((low, high), abs=1e-4)


def test_a_score_without_questions_is_zero_and_says_nothing() -> None:
    """A model of a few steps may write no whole sentence that could be judged."""
    score = skills.Score(right=0, asked=0, commonest=0.0)
    assert (score.share, score.interval) == (0.0, (0.0, 1.0))


def test_skills_are_measured_on_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    monkeypatch.setattr(skills, "answers_right", lambda model, tokenizer, items: [True] * len(items))
    scores = skills.measure(toy_model("gpt"), toy_tokenizer("gpt"), watched, asked=20)
    assert watched.splits == {"test"}
    assert {name: score.right for name, score in scores.items()} == dict.fromkeys(skills.SKILLS, 20)


def test_the_commonest_answer_is_counted_among_those_asked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [Question(prompt="Q:", answer=answer) for answer in "abaca"]
    monkeypatch.setattr(skills, "SKILLS", {"letters": lambda world, split: iter(asked)})
    scores = skills.measure(toy_model("gpt"), toy_tokenizer("gpt"), world, asked=4)
    assert (scores["letters"].commonest, scores["letters"].asked) == (0.5, 4)


@pytest.mark.parametrize("name", ["closed-book facts, famous people", "closed-book facts, least known people"])
def test_facts_are_asked_in_wordings_that_training_never_uses(world: World, name: str) -> None:
    splits = ("train", "validation")
    taught = {q.prompt for person in world.people for split in splits for q in world.facts_about(person, split)}
    asked = [question.prompt for question in skills.SKILLS[name](world, "test")]
    assert len(asked) >= 200
    assert not taught & set(asked)


def test_the_least_known_people_are_written_about_less_than_the_famous(world: World) -> None:
    told = "".join(world.document("closed-book", i) for i in range(300))
    famous, least = (
        {re.search(r"[A-Z]\w+ [A-Z]\w+", question.prompt.partition(": ")[2]) for question in skills.SKILLS[name](world, "test")}
        for name in ("closed-book facts, famous people", "closed-book facts, least known people")
    )
    counts = [sum(told.count(found[0]) for found in group if found) / len(group) for group in (famous, least)]
    assert counts[0] > 3 * counts[1]


@pytest.fixture(scope="module")
def trained_on(world: World) -> list[str]:
    """The first 100 training documents of every kind."""
    return [world.document(kind, i) for kind in KINDS for i in range(100)]


def test_dates_after_the_cutoff_are_in_no_training_document(world: World, trained_on: list[str]) -> None:
    """Sums aside, whose numbers are no dates."""
    answers = {question.answer for question in skills._after_the_cutoff(world, "test")}
    late = {answer for answer in answers if answer[-4:].isdigit() and int(answer[-4:]) > CUTOFF}
    told = "".join(text for text in trained_on if not text.startswith(("Count:", "Question: ")))
    assert len(late) > 10
    assert [answer for answer in late if re.search(rf"\b{answer}\b", told)] == []


def test_no_training_sentence_tells_where_somebody_moved_after_the_cutoff(world: World, trained_on: list[str]) -> None:
    lines = [line for text in trained_on for line in re.split(r"(?<=[.?!])\s", text)]
    assert world.later_moves
    for move in world.later_moves:
        assert [line for line in lines if move.person.name in line and move.new in line] == []


def test_sums_take_three_or_four_steps(world: World) -> None:
    asked = list(islice(skills.SKILLS["3–4-step sums, with steps"](world, "test"), 20))
    assert {question.work.count("=") for question in asked} == {3, 4}


def test_negated_reviews_hold_a_negation_and_have_both_feelings(world: World) -> None:
    asked = list(islice(skills.SKILLS["feeling of a review, negated"](world, "test"), 40))
    assert all(re.search(r" not | never |Nobody |nothing ", question.prompt) for question in asked)
    assert {question.answer for question in asked} == {"positive", "negative"}


WORDS = ("apple", "mill", "harbour", "red", "goat", "lantern")


@pytest.fixture(scope="module")
def memorised():
    """A tiny model that knows the first letters and the last of six words by heart."""
    tokenizer = toy_tokenizer("gpt")
    model = build_model(replace(TOYS["gpt"], width=32, layers=2, seed=1), tokenizer)
    known = [Question(prompt=f"Say {word}:", answer=word[::-1]) for word in WORDS]
    texts = [question.prompt + question.completion for question in known]
    batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        adamw.zero_grad()
        model(input_ids=batch["input_ids"], labels=labels).loss.backward()
        adamw.step()
    wrong = [Question(prompt=q.prompt, answer=q.answer[:-1]) for q in known]
    other = [Question(prompt=q.prompt, answer="stone") for q in known[:3]]
    return model.eval(), tokenizer, [question for three in zip(known, wrong, strict=True) for question in three] + other


def test_one_forward_pass_agrees_with_greedy_decoding(memorised) -> None:
    model, tokenizer, asked = memorised
    assert skills.answers_right(model, tokenizer, asked) == [_writes(model, tokenizer, question) for question in asked]


def _writes(model, tokenizer, question: Question) -> bool:
    """Whether greedy decoding, token by token, writes the completion."""
    ids = torch.tensor([tokenizer(question.prompt)["input_ids"]])
    wanted = tokenizer(question.completion, add_special_tokens=False)["input_ids"]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=len(wanted), do_sample=False)
    return out[0, ids.shape[1] :].tolist() == wanted


def test_the_verdict_does_not_depend_on_the_batch_and_a_part_of_the_answer_is_wrong(memorised) -> None:
    model, tokenizer, asked = memorised
    alone, together = (skills.answers_right(model, tokenizer, asked, batch_size=size) for size in (1, 15))
    assert alone == together == [True, False] * len(WORDS) + [False] * 3


# ---------------------------------------------------------------------------------------------------------------- untaught


def _references(world: World, asked: int) -> dict[str, str]:
    """A right reply to every prompt."""
    replies = {example.prompt: example.output for example in (instructions.example(world, i, "test") for i in range(asked))}
    replies |= {task.question: task.steps[0].text for task in (tools.task(world, i, "test") for i in range(asked))}
    for i in range(asked):
        about = preferences.asked(world, Draw(f"manner/{i}"), "test")
        told = facts.state(Draw("told"), about.person, about.relation, "train")
        replies[about.question] = f"{preferences.OPENERS[0]} {told}"
    return replies


def test_untaught_skills_count_the_reference_as_right(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    said = _references(world, 20)
    monkeypatch.setattr(skills, "replies", lambda model, tokenizer, prompts: [said[prompt] for prompt in prompts])
    scores = skills.measure_untaught(toy_model("gpt"), toy_tokenizer("gpt"), world, asked=20)
    assert {name: score.share for name, score in scores.items()} == dict.fromkeys(untaught.UNTAUGHT, 1.0)


@pytest.mark.parametrize("nonsense", ["", "Wug wug.", '{"name": "wug"}'])
def test_untaught_skills_count_nonsense_as_wrong(world: World, monkeypatch: pytest.MonkeyPatch, nonsense: str) -> None:
    monkeypatch.setattr(skills, "replies", lambda model, tokenizer, prompts: [nonsense] * len(prompts))
    scores = skills.measure_untaught(toy_model("gpt"), toy_tokenizer("gpt"), world, asked=20)
    assert {name: score.share for name, score in scores.items()} == dict.fromkeys(untaught.UNTAUGHT, 0.0)


def test_a_right_answer_without_manners_is_not_yet_in_a_helpful_manner(world: World) -> None:
    said = {question: reply.removeprefix(preferences.OPENERS[0]) for question, reply in _references(world, 10).items()}
    assert not any(check(said[question]) for question, check in untaught.UNTAUGHT["right and in a helpful manner"](world, 10))


class Scripted(nn.Module):
    """Writes the texts it was given, one a row, and remembers what it was asked."""

    device = torch.device("cpu")

    def __init__(self, tokenizer, texts: list[str]) -> None:
        super().__init__()
        rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        longest = max(map(len, rows))
        self.rows = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
        self.asked: list[torch.Tensor] = []

    def generate(self, input_ids: torch.Tensor, **options: object) -> torch.Tensor:
        self.asked.append(input_ids)
        first, self.rows = self.rows[: len(input_ids)], self.rows[len(input_ids) :]
        return torch.cat((input_ids, first), 1)


def test_replies_come_back_in_order_without_the_marks_around_them(tokenizer) -> None:
    model = Scripted(tokenizer, [" A hat.<|end|>", "No\n<|eos|>", " Ada Bell <|end|>"])
    prompts = ["Name a thing.", "Well?", "Who?"]
    assert untaught.replies(model, tokenizer, prompts, batch_size=2) == ["A hat.", "No", "Ada Bell"]
    asked = [tokenizer.decode(row) for batch in model.asked for row in batch]
    assert [text.replace("<|pad|>", "") for text in asked] == [f"<|bos|><|user|>{p}<|end|><|assistant|>" for p in prompts]
    assert all(text.endswith("<|assistant|>") for text in asked)


# ---------------------------------------------------------------------------------------------------------------- entropy

SHARES = {"copy": 0.5, "review": 0.25, "biography": 0.25}


def test_the_held_out_file_is_the_same_every_time_and_about_as_large_as_asked(world: World) -> None:
    first, second = entropy.held_out(world, SHARES, 5000), entropy.held_out(World(0), SHARES, 5000)
    assert first == second
    assert 5000 <= first.n_bytes < 5000 + max(len(text.encode()) for text in first.texts)


def test_held_out_documents_are_new_ones_from_the_training_distribution() -> None:
    watched = Watched()
    entropy.held_out(watched, SHARES, 2000)
    assert watched.splits == {"train"}
    assert min(watched.numbers) >= 10**9


def test_the_kinds_of_the_held_out_file_have_their_shares_of_its_text(world: World) -> None:
    """Documents of one kind are twice as long as those of the other, so they come half as often."""
    held = entropy.held_out(world, {"copy": 0.6, "sum-steps": 0.4}, 250_000)
    copies = [text for text in held.texts if text.startswith("Repeat: ")]
    assert sum(map(len, copies)) / held.n_bytes == pytest.approx(0.6, abs=0.04)
    assert len(copies) / len(held.texts) > 0.68


def test_the_bits_of_the_held_out_file_are_those_of_its_documents_and_of_their_kinds() -> None:
    """Two kinds that differ in name only: each choice between them is one bit more."""

    class Twofold(World):
        bits = 0.0

        def measured(self, kind: str, index: int, split: str = "train", size: int | None = None) -> tuple[str, float]:
            text, bits = super().measured("copy", index, split, 5)
            self.bits += bits * (index >= 10**10 + 100)  # the first hundred are only measured for their length
            return text, bits

    one, two = Twofold(0), Twofold(0)
    alone, mixed = entropy.held_out(one, {"copy": 1.0}, 3000), entropy.held_out(two, {"copy": 0.5, "sorting": 0.5}, 3000)
    assert alone.bits == pytest.approx(one.bits)
    assert mixed.bits == pytest.approx(two.bits + len(mixed.texts))


def _uniform():
    model = toy_model("gpt")
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    return model


def test_bits_per_byte_of_a_uniform_model_are_those_of_its_vocabulary(world: World) -> None:
    """Every token then costs log2(vocabulary) bits, whatever the text; the end of each text is one token more."""
    tokenizer, held = toy_tokenizer("gpt"), entropy.held_out(world, SHARES, 3000)
    tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in held.texts)
    expected = tokens * math.log2(300) / held.n_bytes
    assert entropy.bits_per_byte(_uniform(), tokenizer, held) == pytest.approx(expected, rel=1e-4)


def test_bits_per_byte_do_not_depend_on_the_batch(world: World) -> None:
    model, tokenizer, held = toy_model("gpt"), toy_tokenizer("gpt"), entropy.held_out(world, SHARES, 1500)
    alone, together = (entropy.bits_per_byte(model, tokenizer, held, batch_size=size) for size in (1, 16))
    assert alone == pytest.approx(together, rel=1e-5)


def test_the_floor_is_above_zero_and_below_what_xz_and_a_uniform_model_need(world: World) -> None:
    held = entropy.held_out(world, SHARES, 20_000)
    found = entropy.compression(_uniform(), toy_tokenizer("gpt"), held)
    assert 0 < found.floor < found.xz < found.model
    assert found.excess == pytest.approx(found.model - found.floor)


def test_xz_packs_the_very_bytes_of_the_file_and_weights_count_two_bytes_each(world: World) -> None:
    model, held = toy_model("gpt"), entropy.held_out(world, SHARES, 1500)
    found = entropy.compression(model, toy_tokenizer("gpt"), held)
    assert found.xz == 8 * len(lzma.compress("".join(held.texts).encode(), preset=9)) / held.n_bytes
    assert found.model_bytes == 16 * sum(p.numel() for p in model.parameters()) / held.n_bytes


def test_sentences_are_judged_one_by_one_and_the_one_cut_off_does_not_count(tokenizer) -> None:
    texts = [
        "Ada Bell works as a baker. She lives in apple pie.\n<|eos|>Ada wug.",
        "Ada Bell works as a baker.\nAda Bell works as",
    ]
    assert entropy.accepted_share(Scripted(tokenizer, texts), tokenizer, texts=2) == (2, 3)


def test_a_model_that_writes_no_whole_line_is_judged_on_nothing(tokenizer) -> None:
    assert entropy.accepted_share(Scripted(tokenizer, ["Ada Bell"]), tokenizer, texts=1) == (0, 0)


# ---------------------------------------------------------------------------------------------------------------- transfer


ROWS = Classified(tuple(f"text {i}" for i in range(20)), (0,) * 12 + (1,) * 5 + (2,) * 3, ("a", "b", "c"))


def test_few_labels_are_so_many_of_every_class_or_all_there_are() -> None:
    few = ROWS.few(4, seed=0)
    assert Counter(few.labels) == {0: 4, 1: 4, 2: 3}
    assert len(set(few.texts)) == 11
    label_of = dict(zip(ROWS.texts, ROWS.labels, strict=True))
    assert [label_of[text] for text in few.texts] == list(few.labels)


def test_few_labels_are_drawn_by_their_seed() -> None:
    assert ROWS.few(4, seed=0) == ROWS.few(4, seed=0)
    assert set(ROWS.few(4, seed=0).texts) != set(ROWS.few(4, seed=1).texts)


class Fitted(nn.Module):
    """Stands for a model that was fine-tuned at a rate."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate


@pytest.mark.parametrize("best", transfer.RATES)
def test_the_learning_rate_is_chosen_on_validation_data_alone(monkeypatch: pytest.MonkeyPatch, best: float) -> None:
    splits = {name: Classified((name,), (0,), ("a",)) for name in ("train", "validation", "test")}
    judged = []

    def score(task, model, rows) -> float:
        judged.append((rows.texts[0], model.rate))
        return float(model.rate == best) if rows is splits["validation"] else 1.0 - (model.rate == best) / 2

    monkeypatch.setattr(transfer, "_fitted", lambda task, rows, rate, steps, seed: Fitted(rate))
    monkeypatch.setattr(transfer, "_score", score)
    task = transfer._encoder(toy_model("bert"), toy_tokenizer("bert"), ("a",))
    found = transfer._scores(task, [splits["train"]] * 3, splits, steps=1)
    assert found == (0.5,) * 3
    assert sorted(judged) == sorted([("validation", rate) for rate in transfer.RATES] + [("test", best)] * 3)


def test_both_starts_get_the_same_labels_and_steps_and_the_test_set_is_never_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = build_model(replace(TOYS["bert"], seed=3), toy_tokenizer("bert")), []
    monkeypatch.setattr(transfer, "classified", lambda twin, split: replace(ROWS, texts=tuple(split + t for t in ROWS.texts)))
    monkeypatch.setattr(transfer.data, "best", lambda twin: {"macro_f1": 0.8})
    monkeypatch.setattr(transfer, "_scores", lambda *args, steps: calls.append((*args, steps)) or (0.4, 0.6))
    (found,) = transfer.measure_transfer(model, toy_tokenizer("bert"), twins=("twin-irony",), per_class=2, seeds=3)
    few, random_start, _ = calls
    name = "bert.encoder.layer.0.attention.self.query.weight"
    first, second, third = (call[0].model().state_dict()[name] for call in calls)
    assert torch.equal(first, model.state_dict()[name])
    assert torch.equal(first, third)
    assert first.shape == second.shape
    assert not torch.equal(first, second)
    assert (few[1], few[3]) == (random_start[1], random_start[3])
    assert len({rows.texts for rows in few[1]}) == 3
    assert all(text.startswith("train") for call in calls for rows in call[1] for text in rows.texts)
    assert (found.gain, found.reached) == (0.0, pytest.approx(0.5 / 0.8))


def test_a_random_start_is_as_the_network_was_before_its_pre_training() -> None:
    """Positions as sinusoids; every other table drawn anew."""
    before, model = toy_model("bert"), build_model(replace(TOYS["bert"], seed=3), toy_tokenizer("bert"))
    trained = copy.deepcopy(model)
    with torch.no_grad():
        for p in trained.parameters():
            p.add_(1.0)
    start = transfer._randomised(trained).bert.embeddings
    assert torch.equal(start.position_embeddings.weight, before.bert.embeddings.position_embeddings.weight)
    deviation = start.word_embeddings.weight.std().item()
    assert deviation == pytest.approx(model.config.initializer_range, rel=0.1)
    assert not torch.equal(start.word_embeddings.weight, trained.bert.embeddings.word_embeddings.weight)


TOLD = Summarised(("one two. three", "four. five"), ("one three.", "five."), (("one three.", "so: three"), ("five.",)))


def test_summaries_are_judged_by_the_nearest_reference_beside_the_first_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first sentences share 1 of 2 + 2 and 0 words with their nearest references."""
    monkeypatch.setattr(transfer, "summarised", lambda split: TOLD)
    monkeypatch.setattr(transfer, "_scores", lambda task, rows, splits, steps: (0.5,) * len(rows))
    found = transfer.measure_summaries(toy_model("t5"), toy_tokenizer("t5"), seeds=2)
    assert (found.tuned, found.first_sentence) == ((0.5, 0.5), pytest.approx((2 * 1 / 4 + 0) / 2))


def test_a_t5_learns_to_write_the_summaries_it_was_shown() -> None:
    rows = Summarised(("yes yes yes", "no no"), ("up", "far down"), (("up",), ("far down",)))
    task = transfer._summariser(toy_model("t5"), toy_tokenizer("t5"))
    assert transfer._score(task, task.model().eval(), rows) < 0.5
    assert transfer._score(task, transfer._fitted(task, rows, rate=1e-2, steps=80, seed=0), rows) == 1.0


MAKERS = {"bert": transfer._encoder, "t5": transfer._text_to_text}
SIGNS = Classified(("yes yes yes", "no no", "yes", "no no no no", "no", "yes yes"), (0, 1, 0, 1, 1, 0), ("up", "far down"))


@pytest.mark.parametrize("family", MAKERS)
def test_fine_tuning_learns_two_words_apart_and_leaves_the_model_as_it_was(family: str) -> None:
    model = toy_model(family)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    task = MAKERS[family](model, toy_tokenizer(family), SIGNS.names)
    fitted = transfer._fitted(task, SIGNS, rate=1e-2, steps=80, seed=0)
    assert transfer._score(task, fitted, SIGNS) == 1.0
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())


def test_fine_tuning_an_encoder_begins_with_its_weights() -> None:
    model = toy_model("bert")
    task = transfer._encoder(model, toy_tokenizer("bert"), ("a", "b", "c"))
    begun = task.model().bert.state_dict()
    assert all(torch.equal(begun[name], p) for name, p in model.bert.state_dict().items())
    assert task.model().num_labels == 3


# ---------------------------------------------------------------------------------------------------------------- making


def test_a_run_that_was_stopped_ends_with_the_weights_of_an_unbroken_one(
    made: tuple[str, Path], quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, unbroken = made
    batch, steps = Mixture.__call__, []

    def interrupted(self: Mixture, step: int) -> dict[str, torch.Tensor]:
        if self.recipe.seed == 0:  # the validation batches have another
            steps.append(step)
            if len(steps) == 3:
                signal.raise_signal(signal.SIGINT)
        return batch(self, step)

    monkeypatch.setattr(Mixture, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        making.make(f"toy-{family}", out=tmp_path / "model")
    assert not (tmp_path / "model").exists()
    resumed = making.make(f"toy-{family}", out=tmp_path / "model")
    assert steps == list(range(6))
    assert (unbroken / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()


def test_a_fresh_run_begins_again(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    making.make("toy-gpt", out=tmp_path / "model")
    batch, steps = Mixture.__call__, []
    monkeypatch.setattr(Mixture, "__call__", lambda self, step: steps.append(step) or batch(self, step))
    making.make("toy-gpt", out=tmp_path / "model")
    assert steps == []
    making.make("toy-gpt", out=tmp_path / "model", resume=False)
    assert steps == list(range(6))


def test_the_old_model_stays_until_the_new_one_is_whole(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "model"
    out.mkdir()
    (out / "old.txt").write_text("old", encoding="utf-8")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(making, "card", lambda *args: _fail())
        making.make("toy-gpt", out=out)
    assert [path.name for path in out.iterdir()] == ["old.txt"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    making.make("toy-gpt", out=out)
    assert not (out / "old.txt").exists()
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "training.json"} <= {p.name for p in out.iterdir()}


def _fail() -> str:
    raise OSError("disk full")


def test_the_old_model_comes_back_when_the_exchange_fails_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "model", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    (old / "old.txt").write_text("old", encoding="utf-8")
    exchange = making.os.replace
    monkeypatch.setattr(making.os, "replace", lambda a, b: _fail() if Path(a) == new else exchange(a, b))
    with pytest.raises(OSError, match="disk full"):
        making._exchange(new, old)
    assert (old / "old.txt").read_text(encoding="utf-8") == "old"


TYPES = {"gpt": "llama", "bert": "bert", "t5": "t5"}


def test_what_is_made_loads_in_transformers_as_bfloat16_with_its_tokenizer(made: tuple[str, Path]) -> None:
    import transformers

    family, folder = made
    heads = {"gpt": "AutoModelForCausalLM", "bert": "AutoModelForMaskedLM", "t5": "AutoModelForSeq2SeqLM"}
    model = getattr(transformers, heads[family]).from_pretrained(folder)
    tokenizer, own = transformers.AutoTokenizer.from_pretrained(folder), toy_tokenizer(family)
    assert (model.config.model_type, model.dtype) == (TYPES[family], torch.bfloat16)
    assert dict(tokenizer("Ada 12", "naïve")) == dict(own("Ada 12", "naïve"))
    assert (tokenizer.special_tokens_map, tokenizer.chat_template) == (own.special_tokens_map, own.chat_template)
    assert (tokenizer.padding_side, tokenizer.model_max_length) == (own.padding_side, own.model_max_length)


def test_the_card_of_what_is_made_tells_the_numbers_of_its_log(made: tuple[str, Path]) -> None:
    family, folder = made
    log = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert (log["steps"], log["parameters"]) == (6, sum(p.numel() for p in toy_model(family).parameters()))
    _compare((folder / "README.md").read_text(encoding="utf-8"), log)


def _compare(card: str, log: dict) -> None:
    """Every number of the card's head and every cell of its tables is the log's."""
    for number in (f"{log['parameters']:,}", f"{log['tokens']:,}", f"{log['minutes']} minutes", f"{log['loss']} nats"):
        assert number in card
    for title, rows in log["measured"].items():
        assert f"## {title}" in card
        assert all(f"| {' | '.join(row.values())} |" in card for row in rows)


def test_the_log_holds_the_skills_of_a_gpt_and_the_marks_and_validation_loss_of_the_others(made: tuple[str, Path]) -> None:
    log = json.loads((made[1] / "training.json").read_text(encoding="utf-8"))
    marks = {f"mark: {title.lower()}" for title, _ in MARKS.values()}
    wanted = {"feeling of a review"} if made[0] == "gpt" else {"validation loss"} | marks
    assert [set(entry) for entry in log["skills"]] == [{"step"} | wanted]


def test_another_number_of_steps_never_takes_the_shipped_weights_place(quick: None, learner_home: Path) -> None:
    folder = making.make("toy-gpt", steps=2)
    assert learner_home in folder.parents
    assert json.loads((folder / "training.json").read_text(encoding="utf-8"))["steps"] == 2


def test_training_has_the_threads_asked_for_and_they_are_put_back(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, during = torch.get_num_threads(), []
    monkeypatch.setattr(making, "_train", lambda *args: during.append(torch.get_num_threads()) or _fail())
    with pytest.raises(OSError, match="disk full"):
        making.make("toy-gpt", out=tmp_path / "model", threads=before + 1)
    assert (during, torch.get_num_threads()) == ([before + 1], before)


def test_an_unknown_model_is_refused_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='no recipe for "tiny-gtp"; choose one of tiny-gpt, tiny-gpt-small, tiny-bert'):
        making.make("tiny-gtp", out=tmp_path)


def test_a_number_of_steps_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps is 0; choose 1 or more"):
        making.make("tiny-gpt", out=tmp_path, steps=0)


def test_the_curve_of_losses_keeps_the_mean_of_every_25_steps() -> None:
    losses = [1.0] * 25 + [2.0] * 25 + [9.0] * 3
    assert making._thinned(losses) == [[25, 1.0], [50, 2.0]]


def test_gain_and_reached_share_are_told_in_points_and_percent() -> None:
    (row,) = making.transfer_rows([Transfer(twin="t", few=(0.5, 0.7), few_random=(0.2, 0.4), all=(0.81,), best=0.9)])
    assert row["few labels"] == "60.0% (50.0% – 70.0%)"
    assert (row["gain"], row["reached"], row["best achievable"]) == ("+30.0 points", "90.0%", "90.0%")


# ----------------------------------------------------------------------------------------------------------- what ships


def _ships(name: str) -> bool:
    return (zoo.FOLDER / name / "model.safetensors").is_file()


SHIPPED = [pytest.param(name, marks=pytest.mark.skipif(not _ships(name), reason=f"no {name} ships yet")) for name in RECIPES]
TALKING = [pytest.param(name, marks=pytest.mark.skipif(not _ships(name), reason=f"no {name} ships yet")) for name in GPTS]


def _log(name: str) -> dict:
    return json.loads((zoo.FOLDER / name / "training.json").read_text(encoding="utf-8"))


def _card(name: str) -> str:
    return (zoo.FOLDER / name / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_take_two_bytes_a_parameter(name: str) -> None:
    size = (zoo.FOLDER / name / "model.safetensors").stat().st_size
    assert 2 * parameters()[name] <= size <= 2 * parameters()[name] + 40_000
    assert sum(path.stat().st_size for path in (zoo.FOLDER / name).iterdir()) <= size + 400_000


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_has_the_shape_and_the_steps_of_its_recipe(name: str) -> None:
    config = json.loads((zoo.FOLDER / name / "config.json").read_text(encoding="utf-8"))
    wanted = RECIPES[name]
    assert _log(name)["steps"] == wanted.steps
    assert config["model_type"] == TYPES[wanted.family]
    layers, width = ("num_layers", "d_model") if wanted.family == "t5" else ("num_hidden_layers", "hidden_size")
    assert (config["vocab_size"], config[layers], config[width]) == (wanted.vocab_size, wanted.layers, wanted.width)


@cache
def merges() -> dict:
    return json.loads(build_tokenizer(World(0), RECIPES["tiny-gpt"]).backend_tokenizer.to_str())["model"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_tokenizer_is_the_one_learnt_from_this_town(name: str) -> None:
    file = (zoo.FOLDER / name / "tokenizer.json").read_text(encoding="utf-8")
    assert json.loads(file)["model"] == merges()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_card_tells_the_numbers_of_its_log(name: str) -> None:
    _compare(_card(name), _log(name))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_still_has_the_loss_of_its_card(name: str) -> None:
    """On the last batch of its training, rounded to bfloat16: the weights, the tokenizer and the town belong together."""
    model, tokenizer = zoo.load(name)
    batch = Mixture(World(0), tokenizer, RECIPES[name])(RECIPES[name].steps - 1)
    with torch.no_grad():
        loss = reading_loss(model, batch).item()
    assert loss == pytest.approx(_log(name)["loss"], rel=0.25)


@pytest.mark.parametrize("skill", ["closed-book facts, famous people", "answer from a text about 1 stranger"])
@pytest.mark.parametrize("name", TALKING)
def test_a_shipped_gpt_still_has_the_skills_of_its_card(
    world: World, name: str, skill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = zoo.load(name)
    monkeypatch.setattr(skills, "SKILLS", {skill: skills.SKILLS[skill]})
    low, high = _interval(name, skill)
    ours = skills.measure(model, tokenizer, world, asked=60)[skill].interval
    assert ours[0] <= high
    assert ours[1] >= low


@pytest.mark.parametrize("name", [name for name in SHIPPED if name not in TALKING])
def test_a_shipped_reader_still_tells_the_marks_of_its_card(world: World, name: str) -> None:
    for mark, score in measure_marks(*zoo.load(name), world, asked=60).items():
        low, high = _interval(name, mark)
        assert score.interval[0] <= high
        assert score.interval[1] >= low


def _interval(name: str, skill: str) -> tuple[float, float]:
    """The interval of a skill by the model's card."""
    (row,) = [line for line in _card(name).splitlines() if line.startswith(f"| {skill} |")]
    low, high = (float(number) / 100 for number in re.search(r"([\d.]+)% – ([\d.]+)%", row).groups())
    return low, high


# ---------------------------------------------------------------------------------------------------------------- commands


def llmcourse(*arguments: str):
    return CliRunner().invoke(app.build(), list(arguments))


def test_pretrain_reports_an_unknown_model_in_one_line_and_fails() -> None:
    result = llmcourse("pretrain", "tiny-gtp")
    assert result.exit_code == 1
    assert "choose one of tiny-gpt" in result.output
    assert "Traceback" not in result.output


def test_pretrain_stopped_by_ctrl_c_leaves_with_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: object, **options: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "make", stopped)
    assert llmcourse("pretrain", "tiny-gpt").exit_code == 130


@pytest.mark.parametrize(("asked", "measured"), [(["tiny-bert"], "tiny-bert"), ([], "tiny-gpt")])
def test_measure_skills_measures_the_model_named(monkeypatch: pytest.MonkeyPatch, asked: list[str], measured: str) -> None:
    monkeypatch.setattr(zoo, "load", lambda name: (name, None))
    monkeypatch.setattr(making, "measured", lambda model, tokenizer, world: {"Skills": [{"skill": "rowing", "of": model}]})
    result = llmcourse("measure", "skills", *asked)
    assert result.exit_code == 0
    assert f"{measured}: Skills" in result.output
    assert "rowing" in result.output


def test_measure_skills_refuses_an_unknown_model() -> None:
    result = llmcourse("measure", "skills", "tiny-gtp")
    assert result.exit_code == 1
    assert 'unknown model "tiny-gtp"' in result.output


def test_an_unknown_measurement_is_refused_with_the_nearest() -> None:
    result = llmcourse("measure", "skils")
    assert result.exit_code == 1
    assert "did you mean skills?" in result.output


def test_a_choice_given_where_none_is_taken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(app.MEASUREMENTS, "grid", lambda: None)
    result = llmcourse("measure", "grid", "tiny-bert")
    assert result.exit_code == 1
    assert "takes no choice; leave out 'tiny-bert'" in result.output
