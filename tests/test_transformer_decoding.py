"""Decoding: beam search and samplers against transformers, beam search against cases by hand, encoder-decoders."""

from typing import NamedTuple

import pytest
import torch
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration
from transformers.generation import logits_process as processors

from llmcourse.transformer import Config, Transformer, generate, probabilities
from llmcourse.transformer.beam import beam_search
from llmcourse.transformer.generate import penalise

VOCAB = 37


def build(name):
    """A small random transformers model whose next tokens are neither certain nor all alike."""
    torch.manual_seed(3)
    size = {"vocab_size": VOCAB, "tie_word_embeddings": False}
    if name == "llama":
        size |= {"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 30}
        model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=2, max_position_embeddings=64))
    elif name == "gpt2":
        size |= {"n_embd": 24, "n_head": 3, "n_layer": 2, "n_positions": 64}
        model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=1, eos_token_id=2))
    else:
        size |= {"d_model": 20, "d_kv": 6, "d_ff": 28, "num_heads": 3, "num_layers": 3, "num_decoder_layers": 2}
        model = T5ForConditionalGeneration(T5Config(**size, decoder_start_token_id=0))
    for weight in model.parameters():
        weight.data += (0.5 if name == "t5" else 0.2) * torch.randn_like(weight)
    return model.eval()


class Pair(NamedTuple):
    """transformers' model, ours, and four tokens that both like to write."""

    theirs: torch.nn.Module
    ours: Transformer
    favourites: list[int]

    def stops(self, which):
        """The favourites as an `eos_id` of each kind."""
        return {"no_eos": None, "one_eos": self.favourites[0], "many_eos": self.favourites}[which]


def pair(name):
    theirs = build(name)
    ours = Transformer.from_hf(theirs)
    texts = generate(ours, prompt()[0], 6, num_beams=4, num_return_sequences=4)[:, -5:]
    tokens, counts = texts.unique(return_counts=True)
    return Pair(theirs, ours, tokens[counts.argsort(descending=True)][:8:2].tolist())


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def decoders(request):
    return pair(request.param)


@pytest.fixture(scope="module")
def t5():
    return pair("t5")


def prompt(side=None, batch=3, seq=9):
    """Random ids, and a mask with 0, 2, 4 … padded places at `side`."""
    ids = torch.randint(3, VOCAB, (batch, seq), generator=torch.Generator().manual_seed(seq))
    mask = torch.ones_like(ids)
    for row in range(batch if side else 0):
        mask[row, : 2 * row] = 0
    return ids, mask.flip(1) if side == "right" else mask


def both(models, ids, mask, n_new, pad_id=1, eos_id=None, **options):
    """What transformers and we generate from the same prompt with the same options."""
    names = {"max_new_tokens": n_new, "eos_token_id": eos_id, "pad_token_id": pad_id, "do_sample": "temperature" in options}
    torch.manual_seed(5)
    expected = models.theirs.generate(ids, attention_mask=mask, **names, **{"top_k": 0, **options})
    torch.manual_seed(5)
    return generate(models.ours, ids, n_new, attention_mask=mask, pad_id=pad_id, eos_id=eos_id, **options), expected


# Beam search against transformers

STOPS = ["no_eos", "one_eos", "many_eos"]


@pytest.mark.parametrize("stops", STOPS)
@pytest.mark.parametrize("side", [None, "left"])
@pytest.mark.parametrize(
    ("num_beams", "length_penalty", "early_stopping"),
    [(2, 1.0, True), (3, 0.0, False), (5, 2.5, "never"), (4, 2.5, False), (4, -0.7, False), (3, -0.7, "never")],
)
def test_beam_search_equals_transformers(decoders, stops, side, num_beams, length_penalty, early_stopping):
    options = {"num_beams": num_beams, "length_penalty": length_penalty, "early_stopping": early_stopping}
    got, expected = both(decoders, *prompt(side), 9, eos_id=decoders.stops(stops), **options, num_return_sequences=2)
    assert torch.equal(got, expected)


def test_the_beams_compared_above_do_end_early_and_at_different_lengths(decoders):
    (ids, _), stops = prompt(), decoders.favourites
    texts = generate(decoders.ours, ids, 9, num_beams=4, num_return_sequences=4, eos_id=stops, pad_id=1)[:, 9:]
    lengths = (torch.isin(texts, torch.tensor(stops)).cumsum(1) == 0).sum(1)
    assert len(set(lengths.tolist())) > 2


@pytest.mark.parametrize("stops", STOPS)
def test_beam_search_with_a_repetition_penalty_equals_transformers(decoders, stops):
    got, expected = both(decoders, *prompt(), 9, eos_id=decoders.stops(stops), num_beams=3, repetition_penalty=1.4)
    assert torch.equal(got, expected)


def test_a_single_prompt_and_every_beam_returned_equal_transformers(decoders):
    ids, mask = prompt(batch=1)
    got, expected = both(decoders, ids, mask, 12, eos_id=decoders.stops("one_eos"), num_beams=6, num_return_sequences=6)
    assert torch.equal(got, expected) and len(got) == 6


def log_p(model, texts, start):
    """Log-probability of the tokens from column `start` on."""
    with torch.no_grad():
        steps = model(texts).log_softmax(-1)[:, start - 1 : -1]
    return steps.gather(2, texts[:, start:, None]).sum((1, 2))


def test_the_returned_beams_come_best_first_and_the_best_is_no_worse_than_greedy(decoders):
    ours, (ids, _) = decoders.ours, prompt()
    beams = log_p(ours, generate(ours, ids, 8, num_beams=6, num_return_sequences=6), 9).view(3, 6)
    assert (beams.diff(dim=1) <= 1e-5).all() and (beams[:, 0] - beams[:, -1] > 0.1).all()
    assert (beams[:, 0] >= log_p(ours, generate(ours, ids, 8), 9) - 1e-5).all()


def test_the_prompt_is_read_once_for_all_beams(decoders):
    ours, (ids, mask), read = decoders.ours, prompt("left"), []
    hook = ours.embed.register_forward_hook(lambda module, inputs, output: read.append(tuple(inputs[0].shape)))
    generate(ours, ids, 4, attention_mask=mask, num_beams=5)
    hook.remove()
    assert read == [(3, 9), (15, 1), (15, 1), (15, 1)]


@pytest.mark.parametrize("pad_id", [0, 1, None])
def test_ended_texts_are_filled_up_with_the_pad_token_or_eos(decoders, pad_id):
    """Also where it is 0; transformers then fills up with EOS in beam search, though not in greedy search."""
    (ids, _), stops = prompt(), decoders.favourites
    texts = generate(decoders.ours, ids, 9, num_beams=4, num_return_sequences=4, eos_id=stops, pad_id=pad_id)[:, 9:]
    after = torch.isin(texts, torch.tensor(stops)).cumsum(1).roll(1, 1)
    after[:, 0] = 0
    assert after.any() and texts[after > 0].eq(stops[0] if pad_id is None else pad_id).all()


def test_beams_without_new_tokens_are_the_prompt():
    model = Transformer(Config(vocab_size=VOCAB, d_model=8, n_layers=1, n_heads=2, max_positions=32)).eval()
    ids, _ = prompt()
    assert torch.equal(generate(model, ids, 0, num_beams=2, num_return_sequences=2), ids.repeat_interleave(2, 0))


def test_beams_can_be_trained_on(decoders):
    ours, (ids, _) = decoders.ours, prompt()
    ours(generate(ours, ids, 3, num_beams=2)).sum().backward()
    assert ours.embed.weight.grad is not None


# Beam search by hand: a model that is a table from the last token to the next one's probabilities


def search(table, n_new, num_beams, **options):
    """The beams after the prompt [0], and how often the table was asked."""
    asked, table = [], torch.tensor(table).log()

    def step(tokens, end, rows):
        asked.append(end)
        return table[tokens[:, end - 1]]

    tokens, stops = torch.zeros(1, 1 + n_new, dtype=torch.long), torch.tensor(options.pop("stops", []), dtype=torch.long)
    options = {"length_penalty": 1.0, "early_stopping": False, **options}
    return beam_search(step, tokens, 1, num_beams, stops, **options)[0, :, 1:].tolist(), len(asked)


TRAP = [[0.0, 0.6, 0.4, 0.0], [0.0, 0.4, 0.3, 0.3], [0.0, 0.0, 0.1, 0.9], [0.25] * 4]  # 1 looks best, 2 then 3 is best


def test_two_beams_find_the_text_that_greedy_search_misses():
    assert search(TRAP, 2, num_beams=1)[0] == [[1, 1]]  # 0.6 · 0.4 = 0.24
    assert search(TRAP, 2, num_beams=2)[0] == [[2, 3], [1, 1]]  # 0.4 · 0.9 = 0.36


# 3 ends a text. From 0: end at once with 0.4, or go on with 1; from 1 the text goes on with 0.95 each time, or ends.
SHORT = [[0.0, 0.55, 0.05, 0.4], [0.0, 0.95, 0.02, 0.03], [0.25] * 4, [0.25] * 4]


def test_a_higher_length_penalty_prefers_the_longer_text():
    long = [1, 1, 1, 1, 1]  # 0.55 · 0.95⁴ = 0.448, more than 0.4 as it stands
    ended = [3, 0, 0, 0, 0]
    for alpha, best in ((2.0, long), (0.0, long), (-1.0, ended)):  # -1: log p is multiplied by the length
        assert search(SHORT, 5, num_beams=2, stops=[3], length_penalty=alpha)[0][0] == best


def test_early_stopping_closes_a_prompt_at_its_nth_ended_text():
    found, asked = search(SHORT, 100, num_beams=2, stops=[3], early_stopping=True)
    assert asked == 2 and [text[:3] for text in found] == [[3, 0, 0], [1, 3, 0]]


@pytest.mark.parametrize("early_stopping", [False, "never"])
@pytest.mark.parametrize(("length_penalty", "steps"), [(0.0, 70), (-1.0, 9)])
def test_without_it_the_search_goes_on_until_no_open_text_could_still_be_among_the_n_best(early_stopping, length_penalty, steps):
    """The second-best ended text has p = 0.55 · 0.03, the open one 0.55 · 0.95^(n − 1): less from n = 70 on.

    With α = −1 log p counts n times, which for the ended one is twice: the open one scores less from n = 9 on.
    """
    options = {"stops": [3], "early_stopping": early_stopping, "length_penalty": length_penalty}
    found, asked = search(SHORT, 100, num_beams=2, **options)
    assert asked == steps and [text[:3] for text in found] == [[3, 0, 0], [1, 3, 0]]


# Samplers


@pytest.mark.parametrize("min_p", [0.0, 0.05, 0.4, 1.0])
@pytest.mark.parametrize("options", [{}, {"top_k": 6}, {"top_p": 0.8}, {"top_k": 12, "top_p": 0.9}])
@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_min_p_distribution_equals_transformers_processors(min_p, options, temperature):
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)) * 3
    scores = processors.TemperatureLogitsWarper(temperature)(None, logits)
    if "top_k" in options:
        scores = processors.TopKLogitsWarper(options["top_k"])(None, scores)
    if "top_p" in options:
        scores = processors.TopPLogitsWarper(options["top_p"])(None, scores)
    scores = processors.MinPLogitsWarper(min_p)(None, scores)
    assert torch.equal(probabilities(logits, temperature, **options, min_p=min_p), scores.softmax(-1))


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest():
    p = probabilities(torch.tensor([0.5, 0.3, 0.15, 0.05]).log(), min_p=0.4)
    assert_close(p, torch.tensor([0.625, 0.375, 0.0, 0.0]))


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.3])
def test_repetition_penalty_equals_transformers_processor(penalty):
    torch.manual_seed(0)
    logits, seen = torch.randn(4, VOCAB) * 3, torch.randint(VOCAB, (4, 9))
    seen[:, 3] = seen[:, 5]  # seen twice, penalised once
    assert torch.equal(penalise(logits, seen, penalty), processors.RepetitionPenaltyLogitsProcessor(penalty)(seen, logits))


SAMPLING = [
    {"temperature": 0.7},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.3, "top_k": 8, "top_p": 0.9, "min_p": 0.05},
]
PENALTIES = [{"temperature": 1.0, "top_p": 0.8, "repetition_penalty": 1.5}, {"temperature": 1.0, "repetition_penalty": 0.8}]


@pytest.mark.parametrize(
    ("side", "options"),  # whether padding counts as seen depends on transformers' version
    [(side, options) for options in SAMPLING for side in (None, "left")] + [(None, options) for options in PENALTIES],
)
def test_sampled_tokens_equal_transformers_under_the_same_seed(decoders, side, options):
    got, expected = both(decoders, *prompt(side), 15, eos_id=decoders.favourites, **options)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("penalty", [0.8, 1.3])
def test_greedy_tokens_with_a_repetition_penalty_equal_transformers(decoders, penalty):
    got, expected = both(decoders, *prompt(), 15, repetition_penalty=penalty)
    assert torch.equal(got, expected) and not torch.equal(got, generate(decoders.ours, prompt()[0], 15))


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_a_repetition_penalty_does_not_count_padding_as_seen(decoders, options):
    ours, (ids, mask) = decoders.ours, prompt("left")
    texts = generate(ours, ids, 10, attention_mask=mask, repetition_penalty=1.5, **options)
    for row in range(3):
        alone = generate(ours, ids[row : row + 1, 2 * row :], 10, repetition_penalty=1.5, **options)
        assert torch.equal(texts[row, 2 * row :], alone[0])


# Encoder-decoders


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize(
    "options",
    [{}, {"repetition_penalty": 1.3}, {"num_beams": 3, "num_return_sequences": 2}, {"temperature": 1.2, "top_p": 0.9}],
)
@pytest.mark.parametrize("stops", STOPS)
def test_t5_writes_what_transformers_writes(t5, side, options, stops):
    got, expected = both(t5, *prompt(side), 12, eos_id=t5.stops(stops), **options)
    assert torch.equal(got, expected)


def test_the_encoder_reads_once_and_the_decoder_one_token_a_step(t5):
    ours, (ids, _), read = t5.ours, prompt(), []
    hooks = [
        part.register_forward_hook(lambda module, inputs, output, name=name: read.append((name, inputs[0].shape[1])))
        for name, part in (("encoder", ours.encoder), ("decoder", ours.blocks[0]))
    ]
    generate(ours, ids, 3)
    for hook in hooks:
        hook.remove()
    assert read == [("encoder", 9), ("decoder", 1), ("decoder", 1), ("decoder", 1)]


def test_the_text_of_an_encoder_decoder_begins_with_the_given_start_token(t5):
    texts = [generate(t5.ours, prompt()[0], 4, start_id=start) for start in (0, 5)]
    assert texts[0][:, 0].eq(0).all() and texts[1][:, 0].eq(5).all() and not torch.equal(texts[0][:, 1:], texts[1][:, 1:])


# What generation refuses


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"min_p": 1.1}, r"min_p=1.1 must lie in \[0, 1\]"),
        ({"min_p": -0.1}, "min_p=-0.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be above 0"),
        ({"start_id": VOCAB}, "start_id=37 is outside the vocabulary 0–36"),
        ({"num_beams": 0}, "num_beams=0 must lie between 1 and 18"),
        ({"num_beams": 19}, "num_beams=19 must lie between 1 and 18"),
        ({"num_beams": 13, "eos_id": [1, 2]}, "num_beams=13 must lie between 1 and 12"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3 must lie between 1 and num_beams=2"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 must lie between 1 and num_beams=1"),
        ({"num_beams": 2, "early_stopping": "always"}, "early_stopping='always' must be True, False or \"never\""),
        ({"num_beams": 2, "temperature": 1.0}, "num_beams=2 neither samples nor streams"),
        ({"num_beams": 2, "stream": print}, "num_beams=2 neither samples nor streams"),
        ({"num_beams": 2, "max_new_tokens": 99}, "exceed the model's 32 positions"),
    ],
)
def test_generation_refuses_bad_options(options, problem):
    model = Transformer(Config(vocab_size=VOCAB, d_model=8, n_layers=1, n_heads=2, max_positions=32)).eval()
    with pytest.raises(ValueError, match=problem):
        generate(model, **{"ids": prompt()[0], "max_new_tokens": 2, **options})


@pytest.mark.parametrize("shape", [{"causal": False}, {"head": "pooled"}])
def test_a_model_that_predicts_no_next_token_is_refused(shape):
    model = Transformer(Config(vocab_size=VOCAB, d_model=8, n_layers=1, n_heads=2, **shape)).eval()
    with pytest.raises(ValueError, match="predicts no next token"):
        generate(model, prompt()[0], 2)
