"""Pre-training objectives: equal to the reference collators where they exist, to the papers' definitions where not."""

from __future__ import annotations

import math
from collections import Counter

import jaxtyping
import pytest
import torch
from torch import Tensor

from llmcourse.pretraining import objectives as o

PAD, BOS, MASK, VOCAB = 0, 1, 3, 40
SENTINELS = [39, 38, 37, 36, 35, 34]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(n: int = 4, length: int = 12, seed: int = 0) -> Tensor:
    """Random tokens behind a BOS; the last row ends in padding."""
    ids = torch.randint(5, 30, (n, length), generator=seeded(seed))
    ids[:, 0], ids[-1, -3:] = BOS, PAD
    return ids


@pytest.fixture
def unchecked(monkeypatch):
    """Without the run-time type checker, which would speak before our own message."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<bos>": BOS, "<unk>": 2, "<mask>": MASK, **{f"w{i}": i for i in range(4, VOCAB)}}
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "unk_token": "<unk>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), **special)


# ---------------------------------------------------------------------------------------------------------------- causal, masked


def test_causal_equals_the_reference_collator(tokenizer):
    from transformers import DataCollatorForLanguageModeling

    theirs = DataCollatorForLanguageModeling(tokenizer, mlm=False)([{"input_ids": row} for row in rows().tolist()])
    ours = o.causal(rows(), pad_id=PAD)
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["labels"], theirs["labels"])
    assert torch.equal(ours["attention_mask"], (rows() != PAD).long())


def test_causal_without_padding_asks_for_every_token():
    assert torch.equal(o.causal(rows())["labels"], rows())
    assert "attention_mask" not in o.causal(rows())


@pytest.mark.parametrize("settings", [(0.15, 0.8, 0.1), (0.4, 0.5, 0.5), (1.0, 0.2, 0.3), (0.5, 1.0, 0.0), (0.5, 0.8, 0.0)])
def test_masked_equals_the_reference_collator_draw_for_draw(tokenizer, settings):
    from transformers import DataCollatorForLanguageModeling

    rate, mask_share, random_share = settings
    ids = rows(16, 50)
    shares = {"mlm_probability": rate, "mask_replace_prob": mask_share, "random_replace_prob": random_share}
    collate = DataCollatorForLanguageModeling(tokenizer, seed=7, **shares)
    theirs = collate([{"input_ids": row} for row in ids.tolist()])
    ours = o.masked(
        ids,
        mask_id=MASK,
        vocab_size=len(tokenizer),
        special_ids=tokenizer.all_special_ids,
        rate=rate,
        mask_share=mask_share,
        random_share=random_share,
        generator=seeded(7),
    )
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["labels"], theirs["labels"])
    assert (ours["labels"] != o.IGNORED).any()


def test_special_tokens_and_padding_are_never_chosen_even_when_all_others_are():
    ids = rows()
    batch = o.masked(ids, mask_id=MASK, vocab_size=VOCAB, special_ids=[BOS], pad_id=PAD, rate=1.0, generator=seeded())
    special = (ids == BOS) | (ids == PAD)
    assert torch.equal(batch["labels"] == o.IGNORED, special)
    assert torch.equal(batch["input_ids"][special], ids[special])
    assert torch.equal(batch["attention_mask"], (ids != PAD).long())


def test_eighty_ten_ten():
    ids = torch.full((200, 500), 20)
    batch = o.masked(ids, mask_id=MASK, vocab_size=10**6, generator=seeded())
    chosen = batch["labels"] == 20
    fate = batch["input_ids"][chosen]
    n, kept = len(fate), 1e5
    for count, share, of in [(n, 0.15, kept), ((fate == MASK).sum(), 0.8, n), ((fate == 20).sum(), 0.1, n)]:
        assert abs(count - share * of) < 4 * math.sqrt(of * share * (1 - share))
    assert (batch["input_ids"][~chosen] == 20).all()


def test_masking_leaves_its_input_alone_and_the_seed_decides():
    ids = rows()
    before = ids.clone()
    one, again, other = (
        o.masked(ids, mask_id=MASK, vocab_size=VOCAB, rate=0.5, generator=seeded(seed))["input_ids"] for seed in (1, 1, 2)
    )
    assert torch.equal(ids, before)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_shares_that_are_none_are_refused(unchecked):
    with pytest.raises(ValueError, match=r"sum of shares is 1\.1; choose a value in 0–1"):
        o.masked(rows(), mask_id=MASK, vocab_size=VOCAB, mask_share=0.9, random_share=0.2)
    with pytest.raises(ValueError, match=r"rate is -0\.1; choose a value in 0–1"):
        o.delete_tokens(torch.arange(5), rate=-0.1)


# ---------------------------------------------------------------------------------------------------------------- next sentence

TOWN = [[[10, 11, 12], [13, 14], [15]], [[20], [21, 22, 23, 24, 25]], [[30, 31]]]
SENTENCES = {"cls_id": 1, "sep_id": 2, "pad_id": PAD}


def halves(row: Tensor) -> tuple[list[int], list[int]]:
    ids = row.tolist()
    assert ids[0] == 1
    first = ids.index(2)
    second = ids.index(2, first + 1)
    assert set(ids[second + 1 :]) <= {PAD}
    return ids[1:first], ids[first + 1 : second]


def test_label_0_pairs_neighbours_and_label_1_pairs_sentences_of_two_documents():
    batch = o.next_sentence(TOWN, rows=400, length=16, generator=seeded(), **SENTENCES)
    seen = Counter()
    for row, label in zip(batch["input_ids"], batch["next_sentence_label"].tolist(), strict=True):
        a, b = halves(row)
        place = [(d, s) for d, document in enumerate(TOWN) for s, sentence in enumerate(document) if sentence in (a, b)]
        (d, s), (e, t) = sorted(place, key=lambda p: TOWN[p[0]][p[1]] != a)
        assert ((d, s + 1) == (e, t)) if label == 0 else d != e
        seen[label] += 1
        seen[(d, s), (e, t)] += 1
    assert abs(seen[0] - 200) < 4 * 10
    neighbours = {((0, 0), (0, 1)), ((0, 1), (0, 2)), ((1, 0), (1, 1))}
    strangers = {((d, s), (e, t)) for d, s in ((0, 0), (0, 1), (1, 0)) for e in range(3) for t in range(len(TOWN[e])) if d != e}
    assert set(seen) - {0, 1} == neighbours | strangers


def test_segments_mark_the_second_sentence_and_the_mask_marks_the_padding():
    batch = o.next_sentence(TOWN, rows=20, length=12, generator=seeded(), **SENTENCES)
    for ids, kinds, real in zip(*(batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")), strict=True):
        a, b = halves(ids)
        assert kinds.tolist() == ([0] * (len(a) + 2) + [1] * (len(b) + 1) + [0] * 12)[:12]
        assert real.tolist() == (ids != PAD).long().tolist()


@pytest.mark.parametrize(("first", "second", "left"), [(20, 3, (4, 3)), (3, 20, (3, 4)), (2, 3, (2, 3)), (9, 9, (3, 4))])
def test_long_pairs_are_cut_at_the_longer_sentence_and_the_documents_stay_whole(first, second, left):
    document = [list(range(10, 10 + first)), list(range(30, 30 + second))]
    batch = o.next_sentence([document, [[40]]], rows=50, length=10, generator=seeded(), **SENTENCES)
    assert batch["input_ids"].shape == (50, 10)
    follow = batch["input_ids"][batch["next_sentence_label"] == 0]
    assert len(follow) > 10
    assert all(halves(row) == (document[0][: left[0]], document[1][: left[1]]) for row in follow)
    assert (len(document[0]), len(document[1])) == (first, second)


def test_bert_takes_next_sentences_and_masked_tokens_in_one_batch():
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForPreTraining(BertConfig(vocab_size=VOCAB, **shape)).eval()
    pairs = o.next_sentence(TOWN, rows=8, length=12, generator=seeded(), **SENTENCES)
    batch = pairs | o.masked(pairs["input_ids"], mask_id=MASK, vocab_size=VOCAB, special_ids=[1, 2], pad_id=PAD, rate=0.3)
    out = model(**batch)
    words = torch.nn.functional.cross_entropy(out.prediction_logits.flatten(0, 1), batch["labels"].flatten())
    order = torch.nn.functional.cross_entropy(out.seq_relationship_logits, pairs["next_sentence_label"])
    torch.testing.assert_close(out.loss, words + order, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("documents", [[[[1], [2]]], [[[1]], [[2]]]])
def test_too_little_text_for_next_sentences_is_refused(documents):
    with pytest.raises(ValueError, match="needs two documents or more, one of them with two sentences"):
        o.next_sentence(documents, rows=1, length=8, **SENTENCES)


# ---------------------------------------------------------------------------------------------------------------- span corruption


@pytest.mark.parametrize("length", [2, 3, 7, 20, 100, 568])
@pytest.mark.parametrize(("density", "mean_span"), [(0.15, 3.0), (0.5, 3.0), (0.15, 10.0), (0.9, 1.0)])
def test_hidden_tokens_and_spans_are_as_many_as_the_definition_says(length, density, mean_span):
    """T5: round(length · density) hidden tokens and round(hidden / mean span) spans, at least one of each and one visible."""
    mask = o.random_spans(length, density=density, mean_span=mean_span, generator=seeded(length)).tolist()
    starts = sum(hide and not before for hide, before in zip(mask, [False, *mask], strict=False))
    hidden = min(max(round(length * density), 1), length - 1)
    assert (len(mask), sum(mask)) == (length, hidden)
    assert starts == min(max(round(hidden / mean_span), 1), length - hidden)
    assert (mask[0], mask[-1]) == (False, True)


def test_every_way_of_cutting_spans_is_equally_likely():
    """6 tokens, 3 of them hidden in 2 spans: 2 ways to cut the visible, 2 to cut the hidden."""
    draw = seeded()
    seen = Counter(tuple(o.random_spans(6, density=0.5, mean_span=1.5, generator=draw).tolist()) for _ in range(800))
    assert len(seen) == 4
    assert all(abs(count - 200) < 4 * math.sqrt(800 * 0.25 * 0.75) for count in seen.values())


def their_spans(ids: list[int], hidden: list[bool], sentinels: list[int]) -> list[int]:
    """T5's rule: each run of hidden tokens becomes the next sentinel. It gives the input, and of the turned mask the target."""
    result, k = [], 0
    for i, token in enumerate(ids):
        if not hidden[i]:
            result.append(token)
        elif i == 0 or not hidden[i - 1]:
            result.append(sentinels[k])
            k += 1
    return result


@pytest.mark.parametrize("seed", range(10))
def test_corrupted_spans_equal_t5s_rule(seed):
    mask = o.random_spans(40, density=0.3, generator=seeded(seed)).tolist()
    ids = torch.randint(5, 30, (40,), generator=seeded(seed)).tolist()
    turned = [not hide for hide in mask]
    assert o.corrupt_spans(ids, mask, SENTINELS) == (their_spans(ids, mask, SENTINELS), their_spans(ids, turned, SENTINELS))


def test_the_example_of_the_paper():
    """Thank you [for inviting] me to your party [last] week."""
    hidden = [False, False, True, True, False, False, False, False, True, False]
    visible, target = o.corrupt_spans(list(range(10)), hidden, [90, 91, 92])
    assert (visible, target) == ([0, 1, 90, 4, 5, 6, 7, 91, 9], [90, 2, 3, 91, 8, 92])


def test_a_row_may_begin_with_a_hidden_span():
    assert o.corrupt_spans([5, 6, 7], [True, False, True], [90, 91]) == ([90, 6, 91], [90, 5, 91, 7])


def test_512_inputs_come_from_568_tokens_with_114_targets_as_in_t5():
    assert o.raw_length(512) == (568, 114)


@pytest.mark.parametrize("room", [8, 33, 64, 100])
def test_rows_of_the_raw_length_fill_the_input_exactly_as_foretold(room):
    raw, target = o.raw_length(room)
    batch = o.span_corruption(rows(3, raw), sentinels=range(100, 160), pad_id=PAD, eos_id=2, generator=seeded())
    assert batch["input_ids"].shape[1] <= room
    assert batch["labels"].shape == (3, target)
    assert o.raw_length(room + 2)[0] > raw


def test_input_and_target_together_give_the_row_back():
    ids = torch.randint(5, 30, (6, 60), generator=seeded())
    batch = o.span_corruption(ids, sentinels=SENTINELS, pad_id=PAD, eos_id=2, generator=seeded())
    for row, visible, target in zip(ids.tolist(), batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        assert visible[-1] == target[-1] == 2
        spans, key = {}, None
        for token in target[:-1]:
            key = token if token in SENTINELS else key
            spans.setdefault(key, []).extend([] if token == key else [token])
        assert [t for token in visible[:-1] for t in spans.get(token, [token])] == row


def test_rows_of_different_lengths_are_padded_and_their_labels_ignored():
    ragged = [torch.arange(5, 25), torch.arange(5, 12)]
    batch = o.span_corruption(ragged, sentinels=SENTINELS, pad_id=PAD, generator=seeded())
    short = 7 - 1 + 1
    assert batch["attention_mask"].sum(1).tolist() == [20 - 3 + 1, short]
    assert (batch["input_ids"][1, short:] == PAD).all()
    assert (batch["labels"][1, 2:] == o.IGNORED).all()
    assert (batch["labels"][1, :2] != o.IGNORED).all()


def test_t5_learns_from_the_batch():
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=PAD)
    batch = o.span_corruption(rows(2, 30), sentinels=SENTINELS, pad_id=PAD, eos_id=2, generator=seeded())
    out = T5ForConditionalGeneration(config)(**batch)
    assert torch.isfinite(out.loss)
    assert out.logits.shape[:2] == batch["labels"].shape


def test_too_few_sentinels_and_rows_too_short_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match="a row needs sentinel 3, there are 2; give more sentinels, shorter rows or a larger"):
        o.span_corruption(rows(1, 60), sentinels=[38, 39], pad_id=PAD)
    with pytest.raises(ValueError, match="a row of 1 tokens has no room"):
        o.random_spans(1)


# ---------------------------------------------------------------------------------------------------------------- denoising


def test_token_masking_keeps_the_length_and_hides_about_its_rate():
    row = torch.full((5000,), 20)
    spoilt = o.mask_tokens(row, mask_id=MASK, rate=0.2, generator=seeded())
    assert set(spoilt.tolist()) == {20, MASK}
    assert abs(int((spoilt == MASK).sum()) - 1000) < 4 * math.sqrt(5000 * 0.16)


def test_token_deletion_keeps_the_order_and_at_least_one_token():
    row = torch.arange(5000)
    kept = o.delete_tokens(row, rate=0.3, generator=seeded())
    assert (kept.diff() > 0).all()
    assert abs(len(kept) - 3500) < 4 * math.sqrt(5000 * 0.21)
    assert o.delete_tokens(torch.tensor([7, 8]), rate=1.0).tolist() == [7]


def test_infilling_removes_exactly_its_share_and_keeps_the_order_of_the_rest():
    row = torch.arange(100, 1100)
    spoilt = o.infill(row, mask_id=MASK, rate=0.3, generator=seeded())
    visible = spoilt[spoilt != MASK]
    assert len(visible) == 700
    assert (visible.diff() > 0).all()
    spans = int((spoilt == MASK).sum())
    assert abs(spans - 100) < 4 * math.sqrt(100 / 3)  # Poisson(3) lengths that sum to 300


def test_infilling_draws_poisson_lengths_and_spreads_its_spans_over_the_row():
    draw = seeded()
    lengths = Counter(length for _ in range(60) for length in o._poisson_spans(300, 3.0, draw)[:-1])
    total = lengths.total()
    for k in (0, 1, 3, 5):
        share = math.exp(-3) * 3**k / math.factorial(k)
        assert abs(lengths[k] - share * total) < 5 * math.sqrt(total * share)
    places = [
        int((o.infill(torch.arange(10, 20), mask_id=MASK, rate=0.1, mean_span=50.0, generator=draw) == MASK).nonzero())
        for _ in range(1000)
    ]
    assert all(abs(places.count(k) - 100) < 4 * math.sqrt(100) for k in range(10))


def test_sentences_are_permuted_whole():
    row = torch.tensor([10, 11, 2, 12, 2, 13, 14, 15, 2, 16])
    draw = seeded()
    seen = {tuple(o.permute_sentences(row, stop_ids=[2], generator=draw).tolist()) for _ in range(200)}
    parts = [(10, 11, 2), (12, 2), (13, 14, 15, 2), (16,)]
    assert len(seen) == 24
    assert all(sorted(p for p in parts if str(p)[1:-1].strip(",") in str(s)) == sorted(parts) for s in seen)


def test_denoising_applies_the_noises_in_order_and_asks_for_the_row_as_it_was():
    ragged = [torch.arange(10, 20), torch.arange(20, 24)]
    noises = [lambda row: row[:-1], lambda row: torch.cat((row, row[-1:]))]
    batch = o.denoising(ragged, noises, pad_id=PAD, eos_id=2)
    assert batch["input_ids"][1].tolist() == [20, 21, 22, 22, 2] + [PAD] * 6
    assert batch["attention_mask"].sum(1).tolist() == [11, 5]
    assert batch["labels"].tolist() == [[*range(10, 20), 2], [*range(20, 24), 2] + [o.IGNORED] * 6]


# ---------------------------------------------------------------------------------------------------------------- prefix LM


def test_prefix_is_not_asked_for_and_sees_itself_both_ways():
    batch = o.prefix_lm(rows(2, 6), prefix=torch.tensor([2, 4]), pad_id=PAD)
    assert batch["labels"][0].tolist() == [o.IGNORED] * 2 + rows(2, 6)[0, 2:].tolist()
    assert (batch["labels"][1] == o.IGNORED).all()  # three of its places are padding, the rest prefix
    mask = batch["attention_mask"][0, 0].int()
    assert mask.tolist() == [[1, 1, 0, 0, 0, 0]] * 2 + [[1] * n + [0] * (6 - n) for n in (3, 4, 5, 6)]
    assert batch["attention_mask"][1, 0].int()[0].tolist() == [1, 1, 1, 0, 0, 0]


def test_drawn_prefixes_are_uniform_and_leave_something_to_predict():
    ids = torch.full((4000, 5), 20)
    labels = o.prefix_lm(ids, generator=seeded())["labels"]
    counts = Counter((labels == o.IGNORED).sum(1).tolist())
    assert set(counts) == {1, 2, 3, 4}
    assert all(abs(count - 1000) < 4 * math.sqrt(750) for count in counts.values())


def test_a_llama_under_the_prefix_mask_sees_ahead_within_the_prefix_only():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **shape)).eval()
    ids = rows(1, 6)[:, :6].clamp(min=5)

    def logits(changed: int) -> Tensor:
        other = ids.clone()
        other[0, changed] = 33
        batch = o.prefix_lm(other, prefix=torch.tensor([3]))
        return model(input_ids=other, attention_mask=batch["attention_mask"]).logits[0]

    base = model(input_ids=ids, attention_mask=o.prefix_lm(ids, prefix=torch.tensor([3]))["attention_mask"]).logits[0]
    assert not torch.allclose(logits(2)[0], base[0], atol=1e-6)
    torch.testing.assert_close(logits(4)[:4], base[:4], rtol=0, atol=1e-6)


def test_prefix_without_a_rest_is_refused():
    with pytest.raises(ValueError, match=r"prefix lengths \[6\] must lie in 0–5: the row has 6 tokens"):
        o.prefix_lm(rows(1, 6), prefix=torch.tensor([6]))
