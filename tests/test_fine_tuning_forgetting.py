"""Cures for forgetting: penalties and Fisher values as derived by hand, halves that are halves, weights that stand still."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
import transformers
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from llmcourse.fine_tuning import forgetting
from llmcourse.train import TrainConfig, fit
from llmcourse.transformer import Config, Transformer


@pytest.fixture
def unchecked(monkeypatch):
    """Without the run-time type checker, which would speak before our own message."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


class Linear(nn.Module):
    """A linear classifier with the interface of transformers' models."""

    def __init__(self, features: int, classes: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(features, classes, bias=False)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, labels=None):
        logits = self.linear(self.dropout(x))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


# ---- replay ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "old"), [(0.25, [3, 7, 11]), (0.0, []), (0.5, [1, 3, 5, 7, 9, 11]), (1.0, list(range(12)))])
def test_replay_gives_old_batches_in_an_even_share(share, old):
    """Every fourth of twelve with a quarter; both sources are asked in order, without a gap."""
    batch = forgetting.replay(lambda i: ("new", i), lambda i: ("old", i), share)
    found = [batch(i) for i in range(12)]
    assert [i for i, (kind, _) in enumerate(found) if kind == "old"] == old
    for kind in ("new", "old"):
        asked = [i for name, i in found if name == kind]
        assert asked == list(range(len(asked)))


@pytest.mark.parametrize("share", [0.1, 0.3, 1 / 3, 0.7])
def test_replays_share_is_exact_in_spite_of_rounding(share):
    """3 × 0.1 is not 0.3 in floating point; 300 turns still hold their share."""
    batch = forgetting.replay(lambda i: "new", lambda i: "old", share)
    assert [batch(i) for i in range(300)].count("old") == round(300 * share)
    assert [batch(i) for i in range(30)].count("old") == round(30 * share)


def test_a_share_beyond_one_is_refused():
    """Nor below zero."""
    with pytest.raises(ValueError, match=r"share=1.5 of old batches; choose 0–1"):
        forgetting.replay(lambda i: i, lambda i: i, 1.5)


# ---- anchors -----------------------------------------------------------------------------------------------------------


def test_the_gradient_of_ewcs_penalty_is_the_one_derived_by_hand():
    """λ F (θ - θ*), for a linear model."""
    model = Linear(4, 3)
    importance = {"linear.weight": torch.rand(3, 4)}
    anchor = forgetting.ewc(model, importance, strength=0.7)
    start = model.linear.weight.detach().clone()
    model.linear.weight.data += torch.randn(3, 4)
    anchor(model).backward()
    moved = model.linear.weight.detach() - start
    torch.testing.assert_close(model.linear.weight.grad, 0.7 * importance["linear.weight"] * moved)
    torch.testing.assert_close(anchor(model).detach(), 0.35 * (importance["linear.weight"] * moved**2).sum())


def test_l2_to_the_start_is_ewc_with_all_weights_alike():
    """And zero where the model has not moved; a second anchor adds its own."""
    model = Linear(4, 3)
    plain, alike = forgetting.to_start(model, 2.0), forgetting.ewc(model, {"linear.weight": torch.ones(3, 4)}, 2.0)
    assert plain(model) == 0
    model.linear.weight.data += 0.5
    assert plain(model).item() == alike(model).item() == pytest.approx(12 * 0.25)
    batch = {"x": torch.randn(5, 4), "labels": torch.tensor([0, 1, 2, 0, 1])}
    model.eval()
    total = forgetting.penalised(plain, alike)(model, batch)
    assert total.item() == pytest.approx(model(**batch).loss.item() + 6, rel=1e-6)
    assert forgetting.penalised(plain, loss=lambda model, batch: torch.tensor(1.0))(model, batch).item() == pytest.approx(4.0)


def test_an_anchor_keeps_a_copy_of_the_start_and_only_of_what_learns():
    """Training must not move the anchor with the model."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    anchor = forgetting.to_start(model, 1.0)
    assert set(anchor.start) == {"1.weight", "1.bias"}
    model[1].weight.data += 1
    assert anchor(model).item() == pytest.approx(2.0)


def test_anchored_training_ends_between_the_start_and_free_training():
    """Through `fit`: the stronger the anchor, the nearer to the start."""
    batch = {"x": torch.randn(8, 4), "labels": torch.randint(3, (8,))}
    distances = []
    for strength in (0.0, 0.1, 10.0):
        model = Linear(4, 3).eval()
        anchor = forgetting.to_start(model, strength)
        config = TrainConfig(steps=60, lr=0.05, weight_decay=0, bar=False)
        fit(model, lambda i: batch, config, loss=forgetting.penalised(anchor))
        distances.append(float((model.linear.weight.detach() - anchor.start["linear.weight"]).norm()))
    assert distances[0] > 1.2 * distances[1] > 3 * distances[2] > 0


def test_an_anchor_of_another_model_is_refused():
    """By name; nor may the strength be negative."""
    model = Linear(4, 3)
    with pytest.raises(ValueError, match=r"belongs to another model: 'head' and 1 more"):
        forgetting.ewc(model, {"head": torch.ones(1)}, 1.0)
    with pytest.raises(ValueError, match=r"strength=-1\.0 on 1 weights"):
        forgetting.to_start(model, -1.0)


# ---- Fisher ------------------------------------------------------------------------------------------------------------


def examples(count: int, features: int, classes: int) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    return [{"x": torch.randn(1, features), "labels": torch.randint(classes, (1,))} for _ in range(count)]


def closed_form(model: Linear, rows: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Softmax regression: F of weight (c, f) is the mean of p_c (1 - p_c) x_f²."""
    x = torch.cat([row["x"] for row in rows])
    p = model.linear(x).softmax(-1).detach()
    return torch.einsum("nc,nf->cf", p * (1 - p), x**2) / len(rows)


def test_the_fisher_diagonal_of_logistic_regression_is_its_closed_form():
    """Summed over all labels, exactly; in training mode too, since dropout is off while it is measured."""
    model, rows = Linear(5, 3).train(), examples(40, 5, 3)
    found = forgetting.fisher(model, rows, forgetting.classifier_scores, labels="all")
    torch.testing.assert_close(found["linear.weight"], closed_form(model, rows), rtol=1e-4, atol=1e-6)
    assert model.training


def test_labels_drawn_from_the_model_give_the_same_on_average():
    """Unbiased: 40 examples, each 100 times; the same seed gives the same numbers."""
    model, rows = Linear(5, 3), examples(40, 5, 3)
    found = forgetting.fisher(model, rows * 100, forgetting.classifier_scores)["linear.weight"]
    torch.testing.assert_close(found, closed_form(model, rows), rtol=0.12, atol=0.01)
    first, second, other = (forgetting.fisher(model, rows, forgetting.classifier_scores, seed=s) for s in (0, 0, 1))
    assert torch.equal(first["linear.weight"], second["linear.weight"])
    assert not torch.equal(first["linear.weight"], other["linear.weight"])


def test_the_datas_labels_give_the_empirical_fisher():
    """The mean of the squared gradient (y - p)_c² x_f² of each example, not the square of the mean gradient."""
    model, rows = Linear(5, 3), examples(40, 5, 3)
    x, labels = torch.cat([row["x"] for row in rows]), torch.cat([row["labels"] for row in rows])
    error = nn.functional.one_hot(labels, 3) - model.linear(x).softmax(-1).detach()
    found = forgetting.fisher(model, rows, forgetting.classifier_scores, labels="data")
    torch.testing.assert_close(found["linear.weight"], torch.einsum("nc,nf->cf", error**2, x**2) / 40, rtol=1e-4, atol=1e-6)


def test_frozen_weights_have_no_fisher_value_and_no_gradient_is_left_behind():
    """Only what may move needs an importance."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    found = forgetting.fisher(model, [torch.randn(1, 3)], lambda m, x: (m(x), torch.tensor([0])))
    assert set(found) == {"1.weight", "1.bias"}
    assert all(p.grad is None for p in model.parameters())


def test_a_decoders_fisher_takes_every_next_token():
    """Against squared gradients of the text's log-likelihood, for the text itself."""
    config = transformers.LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    torch.manual_seed(0)
    model, ids = transformers.LlamaForCausalLM(config).eval(), torch.tensor([[1, 5, 3, 8]])
    found = forgetting.fisher(model, [{"input_ids": ids}], forgetting.next_token_scores, labels="data")
    (model(input_ids=ids, labels=ids).loss * 3).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad**2, rtol=1e-4, atol=1e-6)


def test_impossible_fishers_are_refused(unchecked):
    """No examples, unknown labels, all labels of several predictions."""
    model = Linear(4, 3)
    several = [{"x": torch.randn(2, 4), "labels": torch.tensor([0, 1])}]
    for arguments, message in (
        (([], "model"), "no examples"),
        ((several, "true"), "labels='true' is unknown"),
        ((several, "all"), "one prediction an example, not 2"),
    ):
        with pytest.raises(ValueError, match=message):
            forgetting.fisher(model, arguments[0], forgetting.classifier_scores, labels=arguments[1])


# ---- half fine-tuning --------------------------------------------------------------------------------------------------


def llama(layers: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=30, hidden_size=8, intermediate_size=12, num_hidden_layers=layers, num_attention_heads=2
        )
    )


def models() -> dict[str, nn.Module]:
    small = {"vocab_size": 30}
    gpt2 = transformers.GPT2Config(**small, n_embd=8, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    bert = transformers.BertConfig(**small, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2)
    t5 = transformers.T5Config(
        **small, d_model=8, d_ff=12, d_kv=4, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu", decoder_start_token_id=0
    )
    return {
        "llama": llama(),
        "gpt2": transformers.GPT2LMHeadModel(gpt2),
        "bert": transformers.BertForSequenceClassification(bert),
        "t5": transformers.T5ForConditionalGeneration(t5),
        "ours": Transformer(Config(vocab_size=30, d_model=8, n_layers=2, n_heads=2, n_encoder_layers=2)),
    }


@pytest.mark.parametrize(
    ("kind", "counts"),
    [  # matrices of one layer: attention, feed-forward, norms
        ("llama", (4, 3, 2)),
        ("gpt2", (2, 2, 2)),
        ("bert", (4, 2, 2)),
        ("t5", (4, 3, 2)),
        ("ours", (8, 3, 3)),
    ],
)
def test_the_units_of_a_layer_are_its_matrices_by_category(kind, counts):
    """A decoder's own layer counts its cross-attention, too; T5's encoder layer has none."""
    units = forgetting._units(models()[kind])
    layer = next(layer for layer in units if layer in ("layer 0", "encoder layer 0" if kind == "t5" else "decoder layer 0"))
    assert tuple(len(units[layer][category]) for category in ("attention", "feed-forward", "norms")) == counts


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5", "ours"])
def test_exactly_half_of_every_category_learns(kind):
    """Counted over all layers; in each layer half, and one more or less where the number is odd."""
    model = models()[kind]
    learning = set(forgetting.half(model, 0))
    units = forgetting._units(model)
    for category in ("attention", "feed-forward", "norms"):
        chosen = total = 0
        for own in units.values():
            modules = own[category]
            count = sum(f"{module}.weight" in learning for module in modules)
            assert count in (len(modules) // 2, (len(modules) + 1) // 2)
            chosen, total = chosen + count, total + len(modules)
        assert 2 * chosen == total


def test_a_weight_and_its_bias_go_together_and_the_outside_is_left_alone():
    """Embeddings, pooler and classifier learn if they did before."""
    model = models()["bert"]
    model.bert.embeddings.requires_grad_(False)
    learning = set(forgetting.half(model, 3))
    for name in learning:
        if name.endswith("bias"):
            assert name.removesuffix("bias") + "weight" in learning
    assert {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight"} <= learning
    assert not any("embeddings" in name for name in learning)


def test_every_round_chooses_anew_and_a_round_can_be_repeated():
    """Over twelve rounds each matrix learns sometimes and rests sometimes; the same round and seed choose the same."""
    model = llama()
    rounds = [set(forgetting.half(model, i)) for i in range(12)]
    assert len({frozenset(learning) for learning in rounds}) == 12
    inside = {name for name, _ in model.named_parameters() if "layers." in name}
    counts = [sum(name in learning for learning in rounds) for name in inside]
    assert min(counts) > 0 and max(counts) < 12
    assert set(forgetting.half(model, 5)) == rounds[5]
    assert set(forgetting.half(model, 5, seed=1)) != rounds[5]


def test_with_an_odd_number_of_odd_layers_the_one_left_over_goes_either_way():
    """Three feed-forward matrices in each of three layers: four or five of nine learn, each in some rounds."""
    units = {f"layer {i}": {"feed-forward": [f"{i}.{m}" for m in "abc"]} for i in range(3)}
    assert {len(forgetting.half_units(units, round)) for round in range(20)} == {4, 5}


def test_the_frozen_half_keeps_its_bits_through_training():
    """Weight decay and momentum included: two rounds of `fit`, each with its own half."""
    model = llama(2)
    batch = {"input_ids": torch.randint(30, (2, 6)), "labels": torch.randint(30, (2, 6))}
    for round in (0, 1):
        learning = set(forgetting.half(model, round))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        fit(model, lambda i: batch, TrainConfig(steps=2, lr=0.1, weight_decay=0.5, bar=False))
        assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} == learning


def test_an_optimizer_kept_from_before_moves_a_frozen_half_only_if_gradients_are_zeroed():
    """The trap that `half` avoids: a gradient of zero lets AdamW decay and drift on, no gradient stops it."""
    model = llama(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    ids = torch.randint(30, (2, 6))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    learning = set(forgetting.half(model, 0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    frozen = [name for name in before if name not in learning]
    weights = dict(model.named_parameters())
    assert frozen and all(torch.equal(weights[name], before[name]) for name in frozen)
    for name in frozen:
        weights[name].grad = torch.zeros_like(weights[name])
    optimizer.step()
    assert not any(torch.equal(weights[name], before[name]) for name in frozen)
