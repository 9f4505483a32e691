"""The next token while typing: the model's own distribution, at every end of every control."""

from functools import partial

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmcourse import show, zoo
from llmcourse.pretraining.next_token import distribution, expectation, next_token
from llmcourse.transformer import Transformer

pytestmark = pytest.mark.skipif(not (zoo.FOLDER / "tiny-gpt").is_dir(), reason="tiny-gpt is not there")
CONTROLS = {"text": "Ada Bell lives in", "temperature": (0.0, 2.0, 0.1, 1.0)}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(zoo.FOLDER / "tiny-gpt")


@pytest.fixture(scope="module")
def theirs(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=32, initializer_range=0.5, **shape)
    ).eval()


@pytest.fixture(scope="module")
def ours(theirs: LlamaForCausalLM) -> Transformer:
    return Transformer.from_hf(theirs)


def test_the_numbers_are_the_models_own(theirs: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Ada Bell lives in"
    with torch.no_grad():
        shares = (theirs(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1] / 0.7).softmax(-1)
    found = expectation(text, 0.7, model=theirs, tokenizer=tokenizer, top=5)
    assert found.tokens == [tokenizer.decode([i]) for i in shares.topk(5).indices]
    assert found.probabilities == pytest.approx(shares.topk(5).values.tolist(), rel=1e-4)
    assert found.others == pytest.approx(1 - shares.topk(5).values.sum().item(), abs=1e-5)
    assert found.entropy == pytest.approx(-(shares * shares.log2()).sum().item(), rel=1e-4)


def test_our_transformer_expects_what_transformers_does(
    ours: Transformer, theirs: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    for text in ("", "The soup was"):
        one, other = (expectation(text, model=model, tokenizer=tokenizer) for model in (ours, theirs))
        assert one.tokens == other.tokens
        assert one.probabilities == pytest.approx(other.probabilities, rel=1e-4)


def test_an_empty_text_asks_how_a_document_begins(ours: Transformer, tokenizer: PreTrainedTokenizerFast) -> None:
    with torch.no_grad():
        shares = ours(torch.tensor([[tokenizer.bos_token_id]]))[0, -1].softmax(-1)
    assert expectation("", model=ours, tokenizer=tokenizer, top=1).probabilities == pytest.approx([shares.max().item()])


def test_of_a_text_longer_than_the_context_the_end_counts(ours: Transformer, tokenizer: PreTrainedTokenizerFast) -> None:
    end = " ".join(["Ada Bell lives in Mill Lane and was born in 1987."] * 3)
    one, other = (expectation(start + end, model=ours, tokenizer=tokenizer) for start in ("What a day. ", "Nobody was there. "))
    assert one == other
    assert one != expectation(end + " No", model=ours, tokenizer=tokenizer)


def test_a_low_temperature_sharpens_a_high_one_flattens_and_zero_is_greedy() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0])
    assert distribution(logits, 0).tolist() == [0, 1, 0]
    assert distribution(logits, 1e-30).tolist() == [0, 1, 0]
    tops = [distribution(logits, temperature).max().item() for temperature in (0.1, 1, 2, 1e6)]
    assert tops == sorted(tops, reverse=True)
    assert tops[-1] == pytest.approx(1 / 3, abs=1e-5)


def test_part_of_a_character_is_named_by_its_bytes(ours: Transformer, tokenizer: PreTrainedTokenizerFast) -> None:
    found = expectation("", model=ours, tokenizer=tokenizer, top=len(tokenizer))
    assert "Ã" in found.tokens
    assert not [token for token in found.tokens if "\ufffd" in token]
    assert found.others == pytest.approx(0, abs=1e-5)


def test_every_end_of_every_control_draws_a_picture(ours: Transformer, tokenizer: PreTrainedTokenizerFast) -> None:
    draw = partial(next_token, model=ours, tokenizer=tokenizer)
    settings = list(show.ends(CONTROLS))
    assert {setting["text"] for setting in settings} == {"Ada Bell lives in", ""}
    for setting in settings:
        with show.core.collected() as shown:
            draw(**setting)
        (html,) = shown
        assert "<img" in html and "Bar chart of probability of the next token" in html


def test_it_plays_as_a_widget(
    ours: Transformer, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLMCOURSE_STRICT", "1")
    show.play(partial(next_token, model=ours, tokenizer=tokenizer, top=2), text="Ada Bell")
    assert "Run this notebook to move the controls (text = Ada Bell)" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["$\\frac$ costs $5", "漢字 🙂 naïve\n", "<|bos|>"])
def test_any_text_can_be_typed(ours: Transformer, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    with show.core.collected() as shown:
        next_token(text, model=ours, tokenizer=tokenizer, top=3)
    assert len(shown) == 1


def test_settings_outside_their_range_are_refused(ours: Transformer, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"temperature is -1; choose 0 \(greedy\) or more"):
        expectation("", -1, model=ours, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="top is 0; choose 1 or more"):
        expectation("", top=0, model=ours, tokenizer=tokenizer)
