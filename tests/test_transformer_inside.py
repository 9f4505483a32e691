"""Inside the model: scores and knock-outs on a model whose heads are known because they were made by hand, then on tiny-gpt."""

import copy
import math
import random

import pytest
import torch
from torch.testing import assert_close

from llmcourse import zoo
from llmcourse.transformer import Config, Transformer, generate
from llmcourse.transformer.inside import induction, knock_out, previous_token, repetition_loss
from llmcourse.world import words

TOKENS, PLACES = 10, 20
PREVIOUS, INDUCTION, IDLE = (0, 1), (1, 1), [(0, 0), (1, 0)]


@torch.no_grad()
def copier():
    """Two layers whose head 1 copies: layer 0 notes the token before, layer 1 finds the note that names the current token.

    The stream holds four one-hot slots: token, note, answer, place.
    """
    token, note, answer, place = torch.arange(3 * TOKENS + PLACES).split([TOKENS, TOKENS, TOKENS, PLACES])
    shape = {"d_model": 3 * TOKENS + PLACES, "n_layers": 2, "n_heads": 2, "d_head": PLACES, "d_ff": 1, "attention_scale": 1.0}
    model = Transformer(Config(vocab_size=TOKENS, max_positions=PLACES, positions="learned", gated=False, **shape)).eval()
    for name, weight in model.named_parameters():
        weight.fill_(1.0 if "norm" in name else 0.0)
    model.embed.weight[range(TOKENS), token] = 1
    model.position.weight[range(PLACES), place] = 1
    model.head.weight[range(TOKENS), answer] = 20
    wiring = [(place[1:], place[:-1], note), (token, note, answer)]  # the query's slot meets the key's; where the value goes
    for block, (query, key, target) in zip(model.blocks, wiring, strict=True):
        attention, features = block.attention, PLACES + torch.arange(len(query))
        attention.q.weight[features, query] = 10
        attention.k.weight[features, key] = 10
        attention.v.weight[PLACES + torch.arange(TOKENS), token] = 1
        attention.o.weight[target, PLACES + torch.arange(TOKENS)] = 1
    return model


def twice(batch=3):
    """Token 0, then a random order of eight others, twice; and the period, 8."""
    rng = torch.Generator().manual_seed(0)
    once = torch.stack([1 + torch.randperm(8, generator=rng) for _ in range(batch)])
    return torch.cat((torch.zeros(batch, 1, dtype=torch.long), once, once), 1), 8


def random_model(**changes):
    torch.manual_seed(1)
    shape = {"vocab_size": 23, "d_model": 24, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "d_ff": 40, "max_positions": 64}
    model = Transformer(Config(**shape, **changes)).eval()
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn_like(weight)
    return model, torch.randint(23, (2, 9))


# Scores


def test_previous_token_score_is_one_for_a_head_that_only_looks_one_place_back():
    shift = torch.eye(5).roll(-1, 1)
    shift[0] = torch.eye(5)[0]  # the first token can only look at itself
    maps = torch.stack((shift, torch.eye(5), torch.full((5, 5), 0.2)))[None, None]
    assert_close(previous_token(maps), torch.tensor([[1.0, 0.0, 0.2]]))


def test_induction_score_counts_only_the_token_that_came_next_the_first_time():
    ids = torch.tensor([[0, 1, 2, 3, 1, 2, 3]])
    maps = torch.zeros(1, 1, 4, 7, 7)
    for head, key in enumerate(({4: 2, 5: 3}, {4: 1, 5: 2}, {4: 3, 5: 4}, {4: 2, 5: 1})):  # right, the copy itself, one on, half
        for query, at in key.items():
            maps[0, 0, head, query, at] = 1
    assert_close(induction(maps, ids, 3), torch.tensor([[1.0, 0.0, 0.0, 0.5]]))


def test_scores_name_the_heads_of_a_model_made_by_hand():
    model, (ids, period) = copier(), twice()
    maps = model.trace(ids).attention
    back, again = previous_token(maps), induction(maps, ids, period)
    assert back[PREVIOUS] > 0.99 and back.flatten().sort().values[-2] < 0.5
    assert again[INDUCTION] > 0.99 and again.flatten().sort().values[-2] < 0.5


def test_tokens_that_do_not_repeat_stay_out_of_the_score():
    """In list, separator, list only the lists count, as "Repeat: a b Again: a b" asks for."""
    model, (ids, period) = copier(), twice()
    with_gap = torch.cat((ids[:, : period + 1], torch.full((3, 1), 9), ids[:, period + 1 :]), 1)
    assert induction(model.trace(with_gap).attention, with_gap, period + 1)[INDUCTION] > 0.99
    assert repetition_loss(model, with_gap, period + 1)[1] < 0.01


# Loss


def test_repetition_loss_is_the_mean_surprise_of_the_same_tokens_first_and_second():
    model, _ = random_model()
    ids = torch.tensor([[7, 3, 4, 5, 9, 3, 4, 5], [7, 3, 4, 5, 9, 3, 4, 8]])
    surprise = -model(ids).detach().log_softmax(-1)
    first = [surprise[row, t - 1, ids[row, t]] for row, t in ((0, 2), (0, 3), (1, 2))]
    second = [surprise[row, t - 1, ids[row, t]] for row, t in ((0, 6), (0, 7), (1, 6))]
    expected = [float(torch.stack(side).mean()) for side in (first, second)]
    assert repetition_loss(model, ids, 4) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("period", [-1, 0, 3, 6, 99])
def test_a_period_at_which_nothing_repeats_is_refused(period):
    model, _ = random_model()
    with pytest.raises(ValueError, match=rf"ids \(1, 6\) repeats at period={period}"):
        repetition_loss(model, torch.arange(6)[None], period)


def test_either_head_of_the_circuit_is_needed_and_the_idle_ones_are_not():
    model, (ids, period) = copier(), twice()
    first, second = repetition_loss(model, ids, period)
    assert second < 0.01 and first > 1
    for head in (PREVIOUS, INDUCTION):
        with knock_out(model, [head]):
            assert repetition_loss(model, ids, period)[1] > 1
    with knock_out(model, IDLE):
        assert repetition_loss(model, ids, period) == pytest.approx((first, second), rel=1e-4)


# Knocking out


@pytest.mark.parametrize("mean", [False, True])
def test_knocked_out_heads_equal_zeroed_columns_of_the_output_projection(mean):
    """With the mean, what is zeroed comes back as a constant: the head's mean times the same columns."""
    model, ids = random_model()
    edited = copy.deepcopy(model)
    for layer, head in [(0, 3), (2, 0), (2, 1)]:  # in this order: a later head's mean depends on the earlier knock-outs
        block, columns = edited.blocks[layer], slice(head * 6, head * 6 + 6)
        output = head_outputs(edited, layer, ids)[:, :, head].mean((0, 1)) if mean else torch.zeros(6)
        bias = 0 if block.attention.o.bias is None else block.attention.o.bias
        block.attention.o.bias = torch.nn.Parameter(bias + block.attention.o.weight[:, columns] @ output)
        block.attention.o.weight.data[:, columns] = 0
    with knock_out(model, [(0, 3), (2, 0), (2, 1)], mean=mean):
        assert_close(model(ids), edited(ids), rtol=1e-4, atol=1e-5)


def head_outputs(model, layer, ids):
    """Weighted values, head by head, from the trace: batch, seq, head, d_head."""
    trace, block = model.trace(ids), model.blocks[layer]
    values = block.attention.v(block.norm1(trace.residual[layer])).unflatten(-1, (2, 6)).repeat_interleave(2, 2)
    return torch.einsum("bhqk,bkhd->bqhd", trace.attention[layer], values)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_before_afterwards_even_after_an_exception(fails):
    model, ids = random_model()
    weights, logits = copy.deepcopy(model.state_dict()), model(ids)
    try:
        with knock_out(model, [(1, 1)]):
            assert not torch.allclose(model(ids), logits)
            assert_close(model.state_dict(), weights, rtol=0, atol=0)
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert torch.equal(model(ids), logits)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_knock_outs_nest_and_no_heads_change_nothing():
    model, ids = random_model()
    free = model(ids)
    with knock_out(model, [(0, 0), (1, 2)]):
        both = model(ids)
    with knock_out(model, [(0, 0)]):
        alone = model(ids)
        with knock_out(model, [(1, 2)]):
            assert torch.equal(model(ids), both)
        assert torch.equal(model(ids), alone)
    with knock_out(model, []):
        assert torch.equal(model(ids), free)
    assert not torch.allclose(both, alone)


def test_knock_out_holds_in_traces_and_in_cached_generation():
    model, ids = random_model()
    with knock_out(model, [(0, 1), (1, 0)]):
        expected = ids
        for _ in range(6):
            expected = torch.cat((expected, model(expected)[:, -1:].argmax(-1)), 1)
        assert torch.equal(generate(model, ids, 6), expected)
        assert_close(model.trace(ids).logits, model(ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [1, 9])
def test_a_knocked_out_head_gets_no_gradient_and_the_others_do(n):
    model, ids = random_model()
    with knock_out(model, [(0, 1)]):
        model(ids[:, :n]).sum().backward()
    silent, loud = model.blocks[0].attention.o.weight.grad[:, 6:12], model.blocks[0].attention.o.weight.grad[:, :6]
    assert silent.eq(0).all() and loud.ne(0).any()


@pytest.mark.parametrize("head", [(3, 0), (0, 4), (-1, 0), (0, -1)])
def test_a_head_the_model_does_not_have_is_refused_with_the_range(head):
    model, _ = random_model()
    with (
        pytest.raises(ValueError, match=rf"no head \({head[0]}, {head[1]}\); layers are 0–2, heads 0–3"),
        knock_out(model, [head]),
    ):
        pass


# The embedded model


@pytest.fixture(scope="module")
def embedded():
    """tiny-gpt, and lists of words to repeat in the format it learned."""
    reference, tokenizer = zoo.load("tiny-gpt")
    listed = sorted({word for group in words.CATEGORIES.values() for word in group})
    single = [word for word in listed if len(tokenizer(f" {word}", add_special_tokens=False).input_ids) == 1]
    lists = [", ".join(random.Random(row).sample(single, 8)) for row in range(8)]
    ids = tokenizer([f"Repeat: {text}\nAgain: {text}" for text in lists], return_tensors="pt").input_ids
    return Transformer.from_hf(reference), ids, 2 * 8 + 2  # 8 words, 7 commas, and "\n", "Again", ":"


def test_tiny_gpt_has_previous_token_and_induction_heads(embedded):
    model, ids, period = embedded
    maps = model.trace(ids).attention
    assert previous_token(maps).max() > 0.4 and induction(maps, ids, period).max() > 0.3


def test_tiny_gpt_copies_with_its_induction_heads(embedded):
    """Without them the second time is worse by more than a nat, and the first time is not."""
    model, ids, period = embedded
    first, second = repetition_loss(model, ids, period)
    assert second < first / 4 and first > math.log(2)
    score = induction(model.trace(ids).attention, ids, period)
    best = [divmod(int(i), model.config.n_heads) for i in score.flatten().argsort(descending=True)[: model.config.n_heads]]
    with knock_out(model, best):
        first_without, without = repetition_loss(model, ids, period)
    assert without > second + 1 and first_without < first + 1
