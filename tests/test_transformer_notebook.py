"""The pictures behind notebook 01's widgets say what the model computes, at both ends of every control."""

import math
import warnings

import pytest
import torch
from torch.testing import assert_close

from llmcourse import show
from llmcourse.show.pictures import figure_html
from llmcourse.transformer import Config, Transformer, frequencies, pictures


class Words:
    """A tokenizer of numbers: every text begins with token 0; token 7 has a long name."""

    def __call__(self, sentence, return_tensors):
        return {"input_ids": torch.tensor([[0, *map(int, sentence.split())]])}

    def decode(self, token):
        return " a very long word" if int(token) == 7 else f" w{int(token)}"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Transformer(Config(vocab_size=20, d_model=24, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=40)).eval()
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    return model.requires_grad_(False)


def angles(fig, pair):
    """The angles of the key's and of the query's hand."""
    tips = [line.get_xydata()[1] for line in fig.axes[pair].lines]
    return [math.atan2(y, x) for x, y in tips]


def cells(fig):
    """The words of the lens: (token, layer) → text."""
    return {tuple(map(round, text.get_position())): text.get_text() for text in fig.axes[0].texts}


def test_moving_both_places_turns_the_hands_and_leaves_the_score():
    here, there = pictures.hands(9, 0), pictures.hands(9, 300)
    assert here.get_suptitle() == there.get_suptitle()
    assert here.get_suptitle() != pictures.hands(10, 0).get_suptitle()
    assert angles(here, 0) != pytest.approx(angles(there, 0), abs=0.1)


@pytest.mark.parametrize("distance", [0, 5, 60])
@pytest.mark.parametrize("start", [0, 500])
def test_the_hands_stand_as_far_apart_as_rope_turns(distance, start):
    theta = frequencies(64)
    fig = pictures.hands(distance, start)
    for column, pair in enumerate((0, 4, 8, 14)):
        key, query = angles(fig, column)
        assert math.cos(query - key) == pytest.approx(math.cos(distance * float(theta[pair])), abs=1e-3)
    assert f"{float((distance * theta).cos().mean()):.2f}" in fig.get_suptitle()


def test_the_lens_shows_what_each_layers_stream_would_say(model):
    shown, trace = cells(pictures.lens(model, Words(), "3 4 5")), model.trace(torch.tensor([[0, 3, 4, 5]]))
    said = model.unembed(trace.residual)[:, 0].argmax(-1)
    assert shown == {(t, layer): pictures._label(Words().decode(said[layer, t])) for t in range(4) for layer in range(4)}
    assert [shown[t, 3] for t in range(4)] == [pictures._label(Words().decode(i)) for i in trace.logits[0].argmax(-1)]


def test_a_long_sentence_is_cut_and_a_long_word_shortened(model):
    ticks = [label.get_text() for label in pictures.lens(model, Words(), "7 " * 40).axes[0].get_xticklabels()]
    assert len(ticks) == pictures.WORDS and ticks[1] == "·a·very·…"


def test_look_shows_the_map_of_the_head_asked_for(model, monkeypatch):
    seen = []
    monkeypatch.setattr(show, "attention", lambda weights, tokens, **_: seen.append((weights, tokens)))
    pictures.look(model, Words(), "1 2 3 4", layer=2, head=1)
    (weights, tokens) = seen.pop()
    assert_close(weights, model.trace(torch.tensor([[0, 1, 2, 3, 4]])).attention[2, 0, 1])
    assert tokens == [" w0", " w1", " w2", " w3", " w4"]


def test_an_empty_sentence_still_gives_pictures(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "<img" in figure_html(pictures.lens(model, Words(), ""), alt="the lens on an empty sentence")
        pictures.look(model, Words(), "", layer=0, head=0)
