"""Comparison: how does one value differ from another, in one sentence a learner can use?

Does:     numbers, text, lists, dicts, sets, dataclasses, modules, NumPy arrays and torch tensors, nested in any way; looks at
          type, shape, dtype, NaN and values in the order in which one would debug; spots a constant factor, a constant offset
          and a transpose.
Leaves out: equality of objects it does not know beyond their own `==`.
Source:   own; the tolerance is `torch.isclose`'s.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["describe", "difference"]


@dataclass(frozen=True)
class _Tolerance:
    rtol: float
    atol: float
    opaque: bool


def difference(
    expected: Any, got: Any, *, rtol: float = 1e-4, atol: float = 1e-5, path: str = "your result", opaque: bool = False
) -> str | None:
    """How `got` differs from `expected` in a sentence, or None when they are equal.

    Args:
        rtol, atol: for floats, as in `torch.isclose`; NaN equals NaN. Integers, booleans and text must be equal.
        path: what to call `got` in the sentence.
        opaque: take objects of unknown classes as equal.
    """
    return _difference(expected, got, path, _Tolerance(rtol, atol, opaque))


def _difference(expected: Any, got: Any, path: str, within: _Tolerance) -> str | None:
    expected, got = _plain(expected), _plain(got)
    if got is None and expected is not None:
        forgot = ": did you forget `return`?" if path == "your result" else "."
        return f"{_start(path)} is `None`{forgot}"
    if _is_array(expected):
        return _array_difference(expected, got, path, within)
    for kind, compare in _COMPARISONS:
        if isinstance(expected, kind):
            return compare(expected, got, path, within)
    torch = sys.modules.get("torch")
    if torch and isinstance(expected, torch.nn.Module):
        return _module_difference(expected, got, path, within)
    if dataclasses.is_dataclass(expected) and type(expected) is type(got):
        return _mapping_difference(_fields(expected), _fields(got), path, within)
    if type(expected) is not type(got):
        return _wrong_type(expected, got, path)
    equal = within.opaque or expected is got or bool(expected == got)
    return None if equal else f"{_start(path)} is {describe(got)}, expected {describe(expected)}."


def _number_difference(expected: Any, got: Any, path: str, within: _Tolerance) -> str | None:
    exact = isinstance(expected, int)
    fits = type(got) is type(expected) if exact else isinstance(got, (int, float, complex)) and not isinstance(got, bool)
    if not fits:
        return _wrong_type(expected, got, path)
    if (got != got) and (expected == expected):  # only NaN differs from itself
        return f"{_start(path)} is NaN, expected {expected!r}."
    if expected == got or (expected != expected and got != got):
        return None
    if not exact and abs(expected - got) <= within.atol + within.rtol * abs(expected) < math.inf:
        return None
    shown = f"{got!r}, expected {expected!r}" if exact else f"{got:.6g}, expected {expected:.6g}"
    return f"{_start(path)} is {shown}{_times(expected, got)}."


def _times(expected: Any, got: Any) -> str:
    """ " (2 × the expected value)" where the ratio is a small whole number or the inverse of one."""
    if isinstance(expected, complex) or isinstance(got, complex) or not expected:
        return ""
    ratio = got / expected
    if not ratio or not math.isfinite(ratio):
        return ""
    simple = {sign * n for n in range(2, 11) for sign in (1, -1)} | {-1}
    near = any(math.isclose(factor, round(factor), rel_tol=1e-4) and round(factor) in simple for factor in (ratio, 1 / ratio))
    return f" ({ratio:.4g} × the expected value)" if near else ""


def _text_difference(expected: Any, got: Any, path: str, within: _Tolerance) -> str | None:
    if type(expected) is not type(got):
        return _wrong_type(expected, got, path)
    return None if expected == got else f"{_start(path)} is {describe(got)}, expected {describe(expected)}."


def _sequence_difference(expected: Any, got: Any, path: str, within: _Tolerance) -> str | None:
    if not isinstance(got, (list, tuple)):
        return _wrong_type(expected, got, path)
    if len(expected) != len(got):
        return f"{_start(path)} has {len(got)} elements, expected {len(expected)}."
    pairs = enumerate(zip(expected, got, strict=True))
    return next(filter(None, (_difference(e, g, f"{path}[{i}]", within) for i, (e, g) in pairs)), None)


def _mapping_difference(expected: Any, got: Any, path: str, within: _Tolerance) -> str | None:
    if not isinstance(got, Mapping):
        return _wrong_type(expected, got, path)
    for label, keys in (("lacks", expected.keys() - got.keys()), ("has the unexpected", got.keys() - expected.keys())):
        if keys:
            return f"{_start(path)} {label} key {sorted(map(repr, keys))[0]}."
    return next(filter(None, (_difference(expected[key], got[key], f"{path}[{key!r}]", within) for key in expected)), None)


def _set_difference(expected: Any, got: Any, path: str, within: _Tolerance) -> str | None:
    if not isinstance(got, (set, frozenset)):
        return _wrong_type(expected, got, path)
    for label, elements in (("lacks", expected - got), ("should not contain", got - expected)):
        if elements:
            return f"{_start(path)} {label} {sorted(map(repr, elements))[0]}."
    return None


def _module_difference(expected: Any, got: Any, path: str, within: _Tolerance) -> str | None:
    if type(expected) is not type(got):
        return _wrong_type(expected, got, path)
    return _mapping_difference(dict(expected.state_dict()), dict(got.state_dict()), path, within)


_COMPARISONS: tuple[tuple[Any, Callable], ...] = (
    ((int, float, complex), _number_difference),
    ((str, bytes), _text_difference),
    ((list, tuple), _sequence_difference),
    (Mapping, _mapping_difference),
    ((set, frozenset), _set_difference),
)


def _array_difference(expected: Any, got: Any, path: str, within: _Tolerance) -> str | None:
    """Tensors and arrays: kind, shape, dtype, device, NaN, then values, in the order in which one would debug."""
    if not _is_array(got) or _is_tensor(expected) != _is_tensor(got):
        return _wrong_type(expected, got, path)
    if expected.shape != got.shape:
        return f"{_start(path)} has shape {tuple(got.shape)}, expected {tuple(expected.shape)}."
    if expected.dtype != got.dtype:
        return f"{_start(path)} has dtype {_dtype(got)}, expected {_dtype(expected)}."
    if _is_tensor(got) and expected.device != got.device:
        return f"{_start(path)} is on device {got.device}, expected {expected.device}."
    try:
        left, right = _tensor(expected), _tensor(got)
    except TypeError:  # arrays of text or objects
        return _difference(expected.tolist(), got.tolist(), path, within)
    return _entry_difference(left, right, path, within)


def _entry_difference(expected: Any, got: Any, path: str, within: _Tolerance) -> str | None:
    """Two tensors of one shape and dtype, entry by entry."""
    import torch

    approximate = expected.is_floating_point() or expected.is_complex()
    if not approximate:
        wrong = expected != got
        return f"{_start(path)} differs {_worst(expected, got, wrong)}." if wrong.any() else None
    broken = ~got.isfinite() & expected.isfinite()
    if broken.any():
        what = "NaN" if got[broken].isnan().any() else "infinite values"
        return f"{_start(path)} contains {what} ({int(broken.sum())} of {got.numel()} entries)."
    wide = torch.complex128 if expected.is_complex() else torch.float64
    expected, got = expected.to(wide), got.to(wide)
    wrong = ~torch.isclose(got, expected, rtol=within.rtol, atol=within.atol, equal_nan=True)
    return f"{_start(path)} {_pattern(expected, got) or 'differs ' + _worst(expected, got, wrong)}." if wrong.any() else None


def _pattern(expected: Any, got: Any) -> str | None:
    """A difference with a simple form: a constant factor, a constant offset, a transpose."""
    import torch

    finite = expected.isfinite() & got.isfinite()
    if finite.sum() < 2 or expected.is_complex():
        return None
    e, g = expected[finite], got[finite]
    if not g.any():
        return "is zero everywhere"
    if torch.allclose(e, e[0], rtol=1e-6):  # a constant cannot tell a factor from an offset
        return None
    scale = (e @ g) / (e @ e)
    if torch.allclose(g, scale * e, rtol=1e-3, atol=1e-5 * float(e.abs().max())):
        return f"is {float(scale):.6g} × the expected value everywhere"
    offset = (g - e).mean()
    if torch.allclose(g, e + offset, rtol=1e-4, atol=1e-4 * float(abs(offset))):
        return f"is off by a constant: every entry is {float(offset):+.6g} away from the expected value"
    if expected.ndim >= 2 and expected.shape[-1] == expected.shape[-2] and torch.allclose(got, expected.mT, rtol=1e-4, atol=1e-5):
        return "is the transpose of what is expected"
    return None


def _worst(expected: Any, got: Any, wrong: Any) -> str:
    """ "in 3 of 12 entries, most at [0, 2]: 0.3, expected 0.5"."""
    gap = (expected.double() - got.double()).abs() if not expected.is_complex() else (expected - got).abs()
    flat = int(gap.nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(~wrong, -1).argmax())
    index = [int(i) for i in _unravel(flat, expected.shape)]
    at = f", most at {index}" if index else ""
    return f"in {int(wrong.sum())} of {wrong.numel()} entries{at}: {_entry(got, index)}, expected {_entry(expected, index)}"


def _unravel(flat: int, shape: Any) -> list[int]:
    index = []
    for size in reversed(shape):
        flat, position = divmod(flat, size)
        index.append(position)
    return index[::-1]


def _entry(tensor: Any, index: list[int]) -> str:
    value = tensor[tuple(index)].item()
    return f"{value:.6g}" if isinstance(value, (float, complex)) else str(value)


def _plain(value: Any) -> Any:
    """NumPy's scalars as Python's."""
    numpy = sys.modules.get("numpy")
    return value.item() if numpy and isinstance(value, numpy.generic) else value


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return bool(torch) and isinstance(value, torch.Tensor)


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return _is_tensor(value) or (bool(numpy) and isinstance(value, numpy.ndarray))


def _tensor(array: Any) -> Any:
    import torch

    tensor = array.detach() if _is_tensor(array) else torch.from_numpy(array)
    return (tensor.to_dense() if tensor.layout != torch.strided else tensor).cpu()


def _dtype(array: Any) -> str:
    return str(array.dtype).removeprefix("torch.")


def _fields(value: Any) -> dict[str, Any]:
    return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}


def _wrong_type(expected: Any, got: Any, path: str) -> str:
    advice = ""
    if inspect.isgenerator(got):
        advice = " Did you write `yield` in place of `return`?"
    elif _is_array(got) and isinstance(expected, (int, float)) and math.prod(got.shape) == 1:
        advice = " `.item()` turns a tensor of one element into a number."
    return f"{_start(path)} is {describe(got)}, expected {describe(expected)}.{advice}"


def _start(path: str) -> str:
    return path[0].upper() + path[1:]


def describe(value: Any) -> str:
    """A short, safe description: type and shape for arrays, type and value for what is small."""
    kind = type(value).__name__
    if _is_array(value):
        return f"a {kind} of shape {tuple(value.shape)}"
    if isinstance(value, (list, tuple, dict, set, frozenset)):
        return f"a {kind} of {len(value)} elements"
    if isinstance(value, (str, bytes, int, float, complex, type(None))):
        try:
            shown = repr(value)
        except ValueError:  # Python refuses to print an integer of thousands of digits
            return f"a very large {kind}"
        return f"`{shown if len(shown) <= 80 else shown[:80] + '…'}` ({kind})"
    return f"an object of type `{kind}`"
