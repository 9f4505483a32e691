"""Selective state spaces: the parallel scan against its recurrence, the block against transformers' Mamba, cost by counting."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MambaConfig
from transformers.cache_utils import DynamicCache
from transformers.models.mamba.modeling_mamba import MambaMixer

from llmcourse.transformer.ssm import Mamba, parallel_scan, recurrence, selective_scan

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SHAPES = {
    "paper": {"d_model": 24},
    "narrow": {"d_model": 10, "d_state": 3, "d_conv": 2, "expand": 3, "dt_rank": 5},
    "no_convolution": {"d_model": 8, "d_state": 1, "d_conv": 1, "expand": 1},
}


def pair(name):
    """transformers' block and ours, with the same random weights."""
    shape = {"d_state": 16, "d_conv": 4, "expand": 2, "dt_rank": "auto", **SHAPES[name]}
    names = {"d_model": "hidden_size", "d_state": "state_size", "d_conv": "conv_kernel", "dt_rank": "time_step_rank"}
    torch.manual_seed(0)
    theirs = MambaMixer(MambaConfig(**{names.get(key, key): value for key, value in shape.items()}), layer_idx=0).eval()
    for weight in theirs.parameters():
        weight.data += 0.2 * torch.randn_like(weight)
    ours = Mamba(**SHAPES[name])
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def scan_inputs(batch=2, seq=13, d_inner=5, d_state=3, dtype=torch.float32):
    torch.manual_seed(seq)
    x, delta = torch.randn(batch, seq, d_inner, dtype=dtype), torch.rand(batch, seq, d_inner, dtype=dtype)
    A, D = -torch.rand(d_inner, d_state, dtype=dtype) * 3, torch.randn(d_inner, dtype=dtype)
    B, C = torch.randn(2, batch, seq, d_state, dtype=dtype)
    return x, delta, A, B, C, D


def text(batch=2, seq=11, d_model=24):
    return torch.randn(batch, seq, d_model, generator=torch.Generator().manual_seed(seq))


# The scan


@pytest.mark.parametrize("seq", [1, 2, 3, 4, 5, 7, 8, 13, 64, 101])
def test_the_parallel_scan_equals_the_recurrence_at_every_length(seq):
    torch.manual_seed(seq)
    decay, inflow = torch.rand(2, seq, 3, 4), torch.randn(2, seq, 3, 4)
    assert_close(parallel_scan(decay, inflow), recurrence(decay, inflow), rtol=1e-5, atol=1e-6)


def test_the_parallel_scan_is_exact_where_everything_is_forgotten():
    """Decays that underflow to 0, at which a quotient of running products would be 0 / 0."""
    decay, inflow = torch.zeros(1, 300, 1, 1), torch.randn(1, 300, 1, 1)
    decay[:, 150:] = 1e-30
    assert_close(parallel_scan(decay, inflow), recurrence(decay, inflow), rtol=1e-6, atol=0)


def test_the_parallel_scan_leaves_its_inputs_alone_and_has_the_recurrences_gradient():
    decay, inflow = torch.rand(1, 6, 2, 2, dtype=torch.double), torch.randn(1, 6, 2, 2, dtype=torch.double)
    before = decay.clone(), inflow.clone()
    gradients = []
    for scan in (parallel_scan, recurrence):
        inputs = decay.clone().requires_grad_(), inflow.clone().requires_grad_()
        gradients.append(torch.autograd.grad(scan(*inputs).square().sum(), inputs))
        scan(decay, inflow)
    assert torch.equal(decay, before[0]) and torch.equal(inflow, before[1])
    for got, want in zip(*gradients, strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("scan", [parallel_scan, recurrence])
def test_the_selective_scan_is_the_equation(scan):
    x, delta, A, B, C, D = scan_inputs(batch=1, seq=4, d_inner=2, d_state=3)
    y, last = selective_scan(x, delta, A, B, C, D, scan=scan)
    for i in range(2):
        h = torch.zeros(3)
        for t in range(4):
            h = (delta[0, t, i] * A[i]).exp() * h + delta[0, t, i] * B[0, t] * x[0, t, i]
            assert_close(y[0, t, i], C[0, t] @ h + D[i] * x[0, t, i])
        assert_close(last[0, i], h)


def test_a_scan_goes_on_from_its_state():
    x, delta, A, B, C, D = scan_inputs()
    whole, last = selective_scan(x, delta, A, B, C, D)
    h, parts = None, []
    for part in torch.arange(13).split([4, 1, 8]):
        y, h = selective_scan(x[:, part], delta[:, part], A, B[:, part], C[:, part], D, h)
        parts.append(y)
    assert_close(torch.cat(parts, 1), whole, **CLOSE)
    assert_close(h, last, **CLOSE)


# The block


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("seq", [1, 2, 11])
def test_the_block_equals_transformers(name, seq):
    theirs, ours = pair(name)
    x = text(seq=seq, d_model=SHAPES[name]["d_model"])
    assert_close(ours(x)[0], theirs(x), **CLOSE)


def test_the_blocks_gradients_equal_transformers():
    theirs, ours = pair("narrow")
    x = text(d_model=10)
    for block in (theirs, lambda x: ours(x)[0]):
        block(x).square().sum().backward()
    for name, weight in ours.named_parameters():
        assert_close(weight.grad, theirs.get_parameter(name).grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("chunks", [[11], [1] * 11, [4, 1, 6], [1, 2, 8]])
def test_chunks_and_single_steps_equal_the_whole_text(name, chunks):
    _, ours = pair(name)
    x, state, parts = text(d_model=SHAPES[name]["d_model"]), None, []
    with torch.no_grad():
        for chunk in x.split(chunks, dim=1):
            y, state = ours(chunk, state)
            parts.append(y)
        assert_close(torch.cat(parts, 1), ours(x)[0], **CLOSE)


def test_steps_equal_transformers_own_steps():
    theirs, ours = pair("paper")
    x, cache, state = text(), DynamicCache(config=theirs.config), None
    with torch.no_grad():
        for chunk in x.split([5, 1, 1, 1, 1, 1, 1], dim=1):
            expected = theirs(chunk, cache_params=cache)
            y, state = ours(chunk, state)
            assert_close(y, expected, **CLOSE)


def test_a_later_input_changes_no_earlier_output():
    _, ours = pair("paper")
    x = text()
    changed = x.clone()
    changed[:, 6] += 1
    before, after = ours(x)[0], ours(changed)[0]
    assert torch.equal(before[:, :6], after[:, :6]) and before[:, 6:].ne(after[:, 6:]).any(-1).all()


def test_in_bfloat16_decay_and_state_are_computed_in_float32():
    _, ours = pair("paper")
    y, (_, h) = ours.bfloat16()(text().bfloat16())
    expected, _ = pair("paper")[1](text())
    _, A, _, _ = ours._select(torch.randn(1, 1, 48).bfloat16())
    assert y.dtype == torch.bfloat16 and h.dtype == A.dtype == torch.float32
    assert_close(y.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())


def test_memories_start_ten_to_a_thousand_steps_long():
    torch.manual_seed(0)
    delta = torch.nn.functional.softplus(Mamba(1, expand=20_000).dt_proj.bias)
    assert 0.00099 < delta.min() < 0.00101 and 0.099 < delta.max() < 0.1001


# Cost


class Count(TorchDispatchMode):
    """Numbers written by arithmetic, and how many operations wrote them."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ in {"mul", "add", "addcmul", "addcmul_", "mm", "bmm", "exp", "convolution"}:
            self.numbers, self.calls = self.numbers + result.numel(), self.calls + 1
        return result


def count(function, *args):
    with torch.no_grad(), Count() as counter:
        counter.numbers = counter.calls = 0
        function(*args)
    return counter


def test_the_blocks_cost_is_linear_in_length_where_attentions_is_not():
    _, ours = pair("paper")
    costs = [count(ours, text(seq=n)).numbers for n in (256, 512, 1024)]
    assert 1.99 < costs[1] / costs[0] < 2.01 and 1.99 < costs[2] / costs[1] < 2.01
    scores = [count(lambda x: x @ x.mT, text(seq=n)).numbers for n in (256, 512)]
    assert scores[1] == 4 * scores[0]


@pytest.mark.parametrize("seq", [64, 1024])
def test_the_parallel_scan_takes_few_rounds_and_as_much_work_as_promised(seq):
    decay, inflow = torch.rand(1, seq, 1, 1), torch.randn(1, seq, 1, 1)
    parallel, sequential = count(parallel_scan, decay, inflow), count(recurrence, decay, inflow)
    assert parallel.calls <= 4 * seq.bit_length() and sequential.calls == 2 * seq
    assert 2.5 * seq < parallel.numbers <= 3 * seq


def test_a_steps_cost_and_state_do_not_grow_with_the_past():
    _, ours = pair("paper")
    steps = []
    for seq in (5, 200):
        with torch.no_grad():
            _, state = ours(text(seq=seq))
        steps.append((count(ours, text(seq=1), state).numbers, [part.shape for part in state]))
    assert steps[0] == steps[1]
