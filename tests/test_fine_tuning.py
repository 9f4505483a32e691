"""Fine-tuning: which weights learn, in what format a task is read, and how a model answers."""

from __future__ import annotations

import copy
import subprocess
import sys

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from llmcourse.fine_tuning import classify, depth, formats
from llmcourse.train import TrainConfig, fit
from llmcourse.transformer import Transformer

SMALL = {"vocab_size": 41, "pad_token_id": 0}
LLAMA = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1}
BERT = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2}
GPT2 = {"n_embd": 12, "n_layer": 3, "n_head": 2, "n_positions": 64}
T5 = {"d_model": 12, "d_ff": 20, "d_kv": 6, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}


@pytest.fixture
def unchecked(monkeypatch):
    """Without the run-time type checker, which would speak before our own message."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def made(kind: str, **more) -> nn.Module:
    """A tiny random model."""
    torch.manual_seed(0)
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, **LLAMA, **more)).eval()
    if kind == "bert":
        return transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, **BERT, **more)).eval()
    if kind == "masked":
        return transformers.BertForMaskedLM(transformers.BertConfig(**SMALL, **BERT, **more)).eval()
    if kind == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**SMALL, **GPT2, bos_token_id=1, eos_token_id=2, **more)
        ).eval()
    if kind == "t5":
        return transformers.T5ForConditionalGeneration(transformers.T5Config(**SMALL, **T5, eos_token_id=2, **more)).eval()
    return Transformer.from_hf(made(kind.removeprefix("our ")))


KINDS = ["llama", "bert", "masked", "gpt2", "t5", "our llama", "our bert", "our gpt2", "our t5"]


class Words:
    """A tokenizer of words, called as transformers' are: [1] in front where special tokens are asked for, no padding token."""

    pad_token_id, eos_token_id = None, 2

    def __init__(self, *, start: bool = True) -> None:
        self.known: dict[str, int] = {}
        self.start = [1] if start else []

    def __call__(self, texts, *, add_special_tokens=True, truncation=False, max_length=None):
        single = isinstance(texts, str)
        rows = [
            [*self.start * add_special_tokens, *(self.known.setdefault(word, 3 + len(self.known)) for word in text.split())]
            for text in ([texts] if single else texts)
        ]
        rows = [row[:max_length] for row in rows] if truncation else rows
        return {"input_ids": rows[0] if single else rows}


# ---- depth -------------------------------------------------------------------------------------------------------------


def test_importing_the_package_costs_no_heavy_library():
    """The command line imports every topic: neither torch nor transformers may come with it."""
    code = "import sys, llmcourse.fine_tuning; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_in_exactly_one_group(kind):
    """Nothing is forgotten and nothing counted twice."""
    model = made(kind)
    members = depth.groups(model)
    listed = [name for names in members.values() for name in names]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("kind", "layers", "norm", "head"),
    [
        ("llama", ["layer 0", "layer 1", "layer 2"], ["model.norm.weight"], ["lm_head.weight"]),
        (
            "bert",
            ["layer 0", "layer 1", "layer 2"],
            [],
            ["pooler.dense.weight", "pooler.dense.bias", "classifier.weight", "classifier.bias"],
        ),
        ("gpt2", ["layer 0", "layer 1", "layer 2"], ["transformer.ln_f.weight", "transformer.ln_f.bias"], []),
        ("our llama", ["layer 0", "layer 1", "layer 2"], ["norm.weight"], ["head.weight"]),
        (
            "t5",
            ["encoder layer 0", "encoder layer 1", "encoder layer 2", "decoder layer 0", "decoder layer 1"],
            ["encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight"],
            [],
        ),
    ],
)
def test_groups_are_named_from_bottom_to_top(kind, layers, norm, head):
    """The layers in order, then the final norm, then the head; a tied language model has no head of its own."""
    members = depth.groups(made(kind))
    assert [group for group in members if "layer" in group] == layers
    assert next(iter(members)) == "embeddings"
    assert [name.removeprefix("bert.") for name in members.get("head", [])] == head
    assert members.get("final norm", []) == norm


def test_the_stacks_of_our_encoder_decoder_are_told_apart():
    """Our Transformer lists its decoder first; the names do not depend on that."""
    members = depth.groups(made("our t5"))
    assert all(name.startswith("encoder.blocks.1.") for name in members["encoder layer 1"])
    assert all(name.startswith("blocks.1.") for name in members["decoder layer 1"])
    assert sum("position_bias" in name for name in members["embeddings"]) == 2


@pytest.mark.parametrize(("k", "learning"), [(0, 5), (1, 5 + 16), (3, 5 + 48)])
def test_the_last_k_layers_learn_and_the_rest_is_frozen(k, learning):
    """BERT: 16 tensors a layer, 5 above them with the pooler."""
    model = made("bert")
    learnt = depth.last_layers(model, k)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sorted(trainable) == learnt
    assert len(trainable) == learning - 1
    assert all(f"layer.{i}." not in name for name in trainable for i in range(3 - k))


def test_head_only_and_all_undo_each_other():
    """Each call decides about every parameter."""
    model = made("llama")
    assert depth.head_only(model) == ["lm_head.weight"]
    assert depth.train_all(model) == sorted(name for name, _ in model.named_parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_frozen_weights_keep_their_bits_through_training():
    """Momentum, weight decay and the optimizer's state move nothing that is frozen, in fit or with an optimizer from before."""
    model = made("bert")
    batch = {"input_ids": torch.randint(3, 41, (4, 7)), "labels": torch.tensor([0, 1, 1, 0])}
    old = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(2):  # fills the moments
        model(**batch).loss.backward()
        old.step()
    depth.head_only(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(**batch).loss.backward()
    old.step()
    fit(model, lambda i: batch, TrainConfig(steps=3, lr=0.1, weight_decay=0.5, bar=False))
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(depth.groups(model)["head"])


def test_rates_fall_with_depth_and_biases_do_not_decay():
    """lr · decay^depth in every group; norms and biases without weight decay; frozen weights left out."""
    model = made("our bert")
    depth.train_only(model, ["layer 0", "layer 1", "layer 2", "head"])
    optimizer = depth.discriminative(0.5)(model, TrainConfig(steps=1, lr=0.8, weight_decay=0.1))
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    weights, members = dict(model.named_parameters()), depth.groups(model)
    for group, rate in (("layer 0", 0.2), ("layer 1", 0.4), ("layer 2", 0.8), ("head", 0.8)):
        for name in members[group]:
            assert rates[id(weights[name])] == pytest.approx((rate, 0.1 if weights[name].ndim > 1 else 0.0))
    assert not any(id(weights[name]) in rates for name in members["embeddings"])


def test_the_embeddings_are_the_deepest_and_each_stack_has_its_own_top():
    """In T5 with 3 and 2 layers both last ones are at depth 0, the shared embedding at 3."""
    model = made("t5")
    optimizer = depth.discriminative(0.5)(model, TrainConfig(steps=1, lr=1.0))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    weights, members = dict(model.named_parameters()), depth.groups(model)
    found = {group: rates[id(weights[names[0]])] for group, names in members.items()}
    assert (found["embeddings"], found["encoder layer 2"], found["decoder layer 1"], found["decoder layer 0"]) == (
        0.125,
        1,
        1,
        0.5,
    )


def test_fit_scales_the_rate_of_every_depth_with_its_schedule():
    """One run: the head moves, the embeddings less, by their own rates."""
    model = made("bert")
    batch = {"input_ids": torch.randint(3, 41, (4, 7)), "labels": torch.tensor([0, 1, 1, 0])}
    before = copy.deepcopy(model.state_dict())
    fit(model, lambda i: batch, TrainConfig(steps=1, lr=1e-3, weight_decay=0, bar=False), optimizer=depth.discriminative(0.1))
    moved = {name: float((value - before[name]).abs().max()) for name, value in model.state_dict().items()}
    assert moved["classifier.weight"] == pytest.approx(1e-3, rel=0.05)
    assert moved["bert.embeddings.word_embeddings.weight"] == pytest.approx(1e-6, rel=0.3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: depth.train_only(made("bert"), ["layer 3"]), "no group 'layer 3'.*did you mean 'layer 2'"),
        (lambda: depth.head_only(made("gpt2")), "no group 'head'"),
        (lambda: depth.last_layers(made("bert"), 4), "k=4 layers of 3; choose 0–3"),
        (lambda: depth.groups(nn.Linear(2, 2)), "holds no list of blocks"),
        (lambda: depth.discriminative(1.5), "decay=1.5; choose a value above 0"),
    ],
)
def test_impossible_depths_are_refused(call, message):
    """With what there is to choose from."""
    with pytest.raises(ValueError, match=message):
        call()


# ---- formats -----------------------------------------------------------------------------------------------------------

MARKS = formats.Marks(start=90, delimiter=91, extract=92)


def test_the_formats_are_gpt_1s_token_by_token():
    """Figure 1 of the paper."""
    assert formats.classification([1, 2], MARKS) == [90, 1, 2, 92]
    assert formats.pair([1, 2], [3], MARKS) == [90, 1, 2, 91, 3, 92]
    assert formats.similarity([1, 2], [3], MARKS) == ([90, 1, 2, 91, 3, 92], [90, 3, 91, 1, 2, 92])
    assert formats.multiple_choice([1], [[2], [3, 4]], MARKS) == [[90, 1, 91, 2, 92], [90, 1, 91, 3, 4, 92]]
    assert formats.joined([[1], [2], [3]], MARKS) == [90, 1, 91, 2, 91, 3, 92]


def test_a_long_pair_loses_the_longer_texts_end_and_never_a_mark():
    """The short text stays whole while the long one is longer; then both shrink."""
    assert formats.pair([1, 2, 3, 4, 5], [6, 7], MARKS, longest=8) == [90, 1, 2, 3, 91, 6, 7, 92]
    assert formats.pair([1, 2, 3, 4, 5], [6, 7], MARKS, longest=5) == [90, 1, 91, 6, 92]
    assert formats.pair([1], [2], MARKS, longest=9) == [90, 1, 91, 2, 92]
    with pytest.raises(ValueError, match="no room for 3 marks"):
        formats.pair([1], [2], MARKS, longest=2)
    with pytest.raises(ValueError, match="no parts"):
        formats.joined([], MARKS)


def test_packing_pads_on_the_right_and_points_at_the_last_token():
    """The place of [extract] in every row."""
    packed = formats.pack([[5, 6, 92], [92]], pad=7)
    assert packed.input_ids.tolist() == [[5, 6, 92], [92, 7, 7]]
    assert packed.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert packed.last.tolist() == [2, 0]
    with pytest.raises(ValueError, match="every row needs a token"):
        formats.pack([[1], []], pad=0)


def test_added_marks_are_new_tokens_with_embeddings_of_their_own():
    """The old rows keep their bits, the vocabulary grows by three, and asking again adds nothing."""
    from tokenizers import Tokenizer, models

    model = made("llama")
    words = {f"w{i}": i for i in range(41)}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")))
    before = model.get_input_embeddings().weight.detach().clone()
    marks = formats.add_marks(model, tokenizer)
    assert marks == formats.Marks(start=41, delimiter=42, extract=43) == formats.add_marks(model, tokenizer)
    after = model.get_input_embeddings().weight
    assert torch.equal(after[:41], before) and after.shape == (44, 12) == model.lm_head.weight.shape
    assert len(set(after[41:, 0].tolist())) == 3


def test_t5s_input_names_the_task_and_its_fields():
    """As in appendix D of the paper."""
    assert (
        formats.text_to_text("mnli", premise="It rains.", hypothesis="It is wet.")
        == "mnli premise: It rains. hypothesis: It is wet."
    )


def test_a_verbaliser_fills_its_pattern_and_tokenises_its_words():
    """Braces of the text are left alone; the words have their lead in front and their end behind."""
    verbaliser = formats.Verbaliser("{text} It was", ("bad", "very good"))
    assert verbaliser.prompt("a {b} {text}") == "a {b} {text} It was"
    assert verbaliser.answers(Words(), end=[2]) == [[3, 2], [4, 5, 2]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: formats.Verbaliser("It was", ("a", "b")), 'holds no "{text}"'),
        (lambda: formats.Verbaliser("{text}", ("a", "a")), "must be different"),
        (lambda: formats.Verbaliser("{text}", ("a", "")), "none empty"),
        (
            lambda: formats.Verbaliser("{text}", ("good", "good enough")).answers(Words()),
            r"'good' \[3\] begin those of 'good enough' \[3, 4\]",
        ),
    ],
)
def test_label_words_that_cannot_be_told_apart_are_refused(call, message):
    """A word that begins another is at least as likely in every text."""
    with pytest.raises(ValueError, match=message):
        call()


# ---- heads -------------------------------------------------------------------------------------------------------------

TEXTS = ["the cat sat", "a dog", "one two three four five", "bird"]


def bodies(kind: str) -> nn.Module:
    model = made(kind)
    return model.encoder if kind == "t5" else model


@pytest.mark.parametrize(
    ("kind", "pool"),
    [
        ("llama", "last"),
        ("gpt2", "last"),
        ("bert", "first"),
        ("masked", "mean"),
        ("t5", "mean"),
        ("our llama", "last"),
        ("our gpt2", "mean"),
        ("our bert", "first"),
    ],
)
def test_a_head_reads_each_text_as_if_it_were_alone(kind, pool):
    """Padding changes nothing, and the scores are a linear map of the state at the right place."""
    classifier = classify.HeadClassifier(bodies(kind), Words(), ("no", "yes", "maybe"), pool=pool).eval()
    together = classifier.log_probs(TEXTS)
    alone = torch.cat([classifier.log_probs([text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert together.shape == (4, 3)
    assert classifier.guesses(TEXTS, size=3) == together.argmax(1).tolist()


def test_a_head_on_our_transformer_equals_one_on_transformers():
    """The same weights under either name."""
    theirs = classify.HeadClassifier(made("llama"), Words(), ("a", "b"), pool="last")
    ours = classify.HeadClassifier(made("our llama"), Words(), ("a", "b"), pool="last")
    ours.head.load_state_dict(theirs.head.state_dict())
    torch.testing.assert_close(ours.log_probs(TEXTS), theirs.log_probs(TEXTS), rtol=1e-4, atol=1e-5)


def test_a_head_equals_transformers_sequence_classifier():
    """Llama's own classification class, weights copied: logits and loss."""
    model = made("llama")
    theirs = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**SMALL, **LLAMA, num_labels=3)).eval()
    theirs.model.load_state_dict(model.model.state_dict())
    ours = classify.HeadClassifier(model, Words(), ("a", "b", "c"), pool="last").eval()
    ours.head.weight.data.copy_(theirs.score.weight)
    batch = ours.batch(TEXTS, [0, 2, 1, 0])
    expected, found = theirs(**batch), ours(**batch)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-4, atol=1e-5)


def test_pooling_finds_first_last_and_mean_of_either_padding():
    """Padding on the left or on the right."""
    states = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert classify.pooled(states, mask, "last").tolist() == [[2, 3], [10, 11]]
    assert classify.pooled(states, mask, "first").tolist() == [[0, 1], [8, 9]]
    assert classify.pooled(states, mask, "mean").tolist() == [[1, 2], [9, 10]]


def test_an_unknown_pool_is_refused(unchecked):
    """With the choices."""
    with pytest.raises(ValueError, match="pool='cls' is unknown; choose first"):
        classify.pooled(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.long), "cls")


def test_a_classifier_has_groups_and_its_head_alone_can_learn():
    """Everything of the body is frozen, the language-model head is not even there, and the model handed in is whole."""
    for kind in ("llama", "our llama"):
        body = made(kind)
        classifier = classify.HeadClassifier(body, Words(), ("a", "b"), pool="last")
        assert depth.head_only(classifier) == ["head.bias", "head.weight"]
        assert next(classifier.parameters()) is next(body.parameters())
    assert isinstance(body.head, nn.Linear)


@pytest.mark.parametrize("kind", ["bert", "our llama"])
def test_a_head_learns_by_fit(kind):
    """Two kinds of texts, told apart after a few steps through `fit` with its default loss."""
    texts, labels = ["good " * i for i in (1, 2, 3)] + ["bad " * i for i in (1, 2, 3)], [1, 1, 1, 0, 0, 0]
    classifier = classify.HeadClassifier(made(kind), Words(), ("-", "+"), pool="mean", dropout=0.0)
    fit(classifier, classifier.batches(texts, labels, size=6), TrainConfig(steps=40, lr=1e-2, bar=False))
    assert classifier.guesses(texts) == labels


def test_a_pair_format_goes_in_through_encode():
    """GPT-1's rows in place of the tokenizer's."""
    marks = formats.Marks(38, 39, 40)

    def encode(pairs):
        packed = formats.pack([formats.pair([len(a)], [len(b)], marks) for a, b in pairs], 0)
        return {"input_ids": packed.input_ids, "attention_mask": packed.attention_mask}

    classifier = classify.HeadClassifier(made("llama"), Words(), ("a", "b"), pool="last", encode=encode)
    scores = classifier.log_probs([("xx", "yyy"), ("yyy", "xx")])
    assert not torch.allclose(scores[0], scores[1], atol=1e-6)


def test_batches_show_every_text_once_before_any_again_and_depend_on_the_index_alone():
    """Two epochs of seven texts in batches of three, whatever order they are asked in."""
    classifier = classify.HeadClassifier(made("llama"), Words(), ("a", "b"), pool="last")
    classifier.batch = lambda texts, labels: {
        "texts": torch.tensor([int(text) for text in texts]),
        "labels": torch.tensor(labels),
    }
    texts, labels = [str(i) for i in range(7)], [i % 2 for i in range(7)]
    batch = classifier.batches(texts, labels, size=3, seed=1)
    asked = {i: batch(i) for i in (4, 0, 2, 1, 3)}
    seen = [text for i in range(5) for text in asked[i]["texts"].tolist()][:14]
    assert sorted(seen[:7]) == list(range(7)) == sorted(seen[7:])
    assert seen[:7] != seen[7:]
    assert torch.equal(asked[2]["texts"] % 2, asked[2]["labels"])
    others = [classifier.batches(texts, labels, size=7, seed=seed)(0)["texts"].tolist() for seed in range(3)]
    assert len(set(map(tuple, others))) == 3
    with pytest.raises(ValueError, match="7 texts and 2 labels"):
        classifier.batches(texts, [0, 1])


def test_asking_leaves_the_mode_as_it_was():
    """A classifier in training stays in training, and dropout is off while it answers."""
    classifier = classify.HeadClassifier(made("bert"), Words(), ("a", "b"), pool="first", dropout=0.5).train()
    assert torch.equal(classifier.log_probs(TEXTS), classifier.log_probs(TEXTS))
    assert classifier.training


# ---- label words -------------------------------------------------------------------------------------------------------


def by_brute_force(model, prompt: list[int], answer: list[int]) -> float:
    """One token after the other, no padding, no batch."""
    total = 0.0
    for i, token in enumerate(answer):
        ids = torch.tensor([prompt + answer[:i]])
        logits = model(ids) if isinstance(model, Transformer) else model(input_ids=ids).logits
        total += float(logits[0, -1].log_softmax(-1)[token].detach())
    return total


VERBALISER = formats.Verbaliser("{text} it was", ("bad", "very good", "so so so"))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "our llama", "our gpt2"])
def test_label_words_are_scored_by_their_log_likelihood(kind):
    """Against a loop over single tokens: words of one, two and three tokens, texts of several lengths."""
    tokenizer = Words()
    words = classify.LabelWords(made(kind), tokenizer, ("-", "+", "~"), VERBALISER)
    prompts = [tokenizer(VERBALISER.prompt(text))["input_ids"] for text in TEXTS]
    expected = torch.tensor([[by_brute_force(words.model, prompt, answer) for answer in words.answers] for prompt in prompts])
    with torch.no_grad():
        torch.testing.assert_close(words.scores(TEXTS), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(words.log_probs(TEXTS, size=3), expected.log_softmax(1), rtol=1e-4, atol=1e-5)


def test_t5s_answers_are_scored_as_its_own_loss_does():
    """-loss · tokens for each answer with its end token, one text at a time."""
    tokenizer, model = Words(start=False), made("t5")
    words = classify.LabelWords(model, tokenizer, ("good", "good enough"))
    assert [answer[-1] for answer in words.answers] == [2, 2]
    for text, scores in zip(TEXTS, words.scores(TEXTS).tolist(), strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        expected = [-float(model(input_ids=ids, labels=torch.tensor([a])).loss.detach()) * len(a) for a in words.answers]
        assert scores == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_loss_of_label_words_is_minus_the_log_likelihood_of_the_right_one(kind):
    """Right words of different lengths in one batch."""
    words = classify.LabelWords(made(kind), Words(), ("-", "+", "~"), VERBALISER)
    labels = [2, 0, 1, 1]
    scores = words.scores(TEXTS)
    expected = -scores[torch.arange(4), torch.tensor(labels)].mean()
    torch.testing.assert_close(words(**words.batch(TEXTS, labels)).loss, expected, rtol=1e-4, atol=1e-5)


def test_label_words_learn_by_fit():
    """A decoder without a new weight learns to say the right word."""
    texts, labels = ["good", "good good", "bad", "bad bad"], [1, 1, 0, 0]
    words = classify.LabelWords(made("gpt2"), Words(), ("no", "yes"))
    fit(words, words.batches(texts, labels, size=4), TrainConfig(steps=40, lr=1e-2, bar=False))
    assert words.guesses(texts) == labels


def test_a_long_prompt_keeps_its_end_where_the_word_follows():
    """The text is cut at its beginning."""
    words = classify.LabelWords(made("llama"), Words(), ("-", "+", "~"), VERBALISER, longest=4)
    ids = words.batch(["one two three four five six", "x"])["input_ids"]
    whole = words.tokenizer(VERBALISER.prompt("one two three four five six"))["input_ids"]
    assert ids[0].tolist() == whole[-4:]
    assert words.batch(["x", "y z"])["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]


def test_as_many_words_as_labels_are_needed():
    """Two words cannot name three labels."""
    with pytest.raises(ValueError, match="3 label words for 2 labels"):
        classify.LabelWords(made("llama"), Words(), ("a", "b"), VERBALISER)


def test_pairs_reach_an_encoder_with_their_token_types():
    """[CLS] a [SEP] b [SEP], the second segment of type 1, padded with 0."""

    class Pairs(Words):
        def __call__(self, first, second, *, truncation, max_length):
            rows = [([1, 5, 2], [6, 2]), ([1, 5, 2], [6, 6, 2])]
            return {"input_ids": [a + b for a, b in rows], "token_type_ids": [[0] * len(a) + [1] * len(b) for a, b in rows]}

    classifier = classify.HeadClassifier(made("bert"), Pairs(), ("a", "b"), pool="first").eval()
    batch = classifier.batch([("a", "b"), ("a", "c c")])
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]]
    without = F.log_softmax(classifier(batch["input_ids"], batch["attention_mask"]).logits, -1)
    assert not torch.allclose(classifier.log_probs([("a", "b"), ("a", "c c")]), without, atol=1e-6)
