"""`%%gpu` cells: the same idea on a real model, run where there is a GPU, priced where there is none.

    %%gpu minutes=6 vram=5 download=1.3 needs="peft"
    model, tokenizer = zoo.load("Qwen/Qwen3-0.6B")

    CUDA present           runs; measures minutes and peak GPU memory
    no CUDA                compiles the cell, says what it costs and what its last real run measured
    LLMCOURSE_STANDIN=1    really runs, on the CPU: `zoo` and `data` give tiny stand-ins
    LLMCOURSE_GPU=0        stays idle even where CUDA is present
    LLMCOURSE_RECORD=1     writes the measurement to gpu_runs.json (`random-weights`: and flags it so)

Does:     reads the notebook's names, keeps its own: what a GPU cell makes is known to GPU cells alone, so no other cell
          depends on a GPU, and `gpu.free()` can give the memory back. The last expression is displayed, and IPython's
          %magics and !commands work.
Leaves out: several GPUs, other accelerators, `await` outside functions; the displayed value is not kept in Out[n]
          (it would hold GPU memory). A notebook object changed in place (`items.append`) stays changed.
"""

from __future__ import annotations

import ast
import dataclasses
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import CodeType
from typing import Any

from .show.cards import card
from .show.core import shell as running_shell

__all__ = ["UsageError", "free", "key", "records", "register"]

RECORDS = Path(__file__).with_name("gpu_runs.json")
GB = 1e9
_ALLOWED = 'minutes=6 vram=5 download=1.3 (required, numbers ≥ 0); name="…", needs="library,library" (optional)'

_space: dict[str, Any] = {}  # the globals of every GPU cell
_own: set[str] = set()  # the names in it that GPU cells made; the others are copies of the notebook's
_refused: list[str] = []  # titles of cells that could not run here, to explain a later NameError


class UsageError(ValueError):
    """A %%gpu line that cannot be understood."""

    # IPython shows this in place of a traceback. Its own UsageError would go to stderr alone, where a notebook check
    # that looks for error outputs sees nothing.
    def _render_traceback_(self) -> list[str]:
        return [f"UsageError: {self}"]


@dataclass(frozen=True, kw_only=True)
class _Cost:
    """What a %%gpu line declares: minutes, GB of GPU memory, GB of download."""

    minutes: float
    vram: float
    download: float
    name: str = ""
    needs: str = ""


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """A GPU cell ready to run."""

    title: str
    key: str
    cost: _Cost
    statements: CodeType
    last: CodeType | None


def register() -> None:
    """Make `%%gpu` known to the running IPython; nothing happens elsewhere. Importing this module calls it."""
    shell = running_shell()
    if shell is not None:
        shell.register_magic_function(_magic, "cell", "gpu")


def free() -> None:
    """Forget every name made in GPU cells and give their memory back."""
    for name in _own:
        _space.pop(name, None)
    _own.clear()
    # After an exception the traceback's frames hold on to its tensors.
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        if hasattr(sys, name):
            setattr(sys, name, None)
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def records() -> dict[str, dict[str, Any]]:
    """The last real run of each GPU cell: `key(body)` → minutes, vram, device, date, random_weights.

    A missing file gives {}; a damaged one too, with a warning.
    """
    try:
        stored = json.loads(RECORDS.read_text(encoding="utf-8"))
        return {name: run for name, run in stored.items() if isinstance(run, dict)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        warnings.warn(f"{RECORDS.name} cannot be read ({error}); GPU cells show no measurements", stacklevel=2)
        return {}


def key(body: str) -> str:
    """The name under which a cell's runs are recorded: sha256 of its body, whatever its line endings and outer space."""
    return hashlib.sha256("\n".join(body.strip().splitlines()).encode()).hexdigest()


def _magic(line: str, body: str) -> None:
    """%%gpu: see the module."""
    __tracebackhide__ = True
    shell = running_shell()
    cell = _prepare(shell, line, body)
    if os.environ.get("LLMCOURSE_STANDIN") == "1":
        _stand_in(shell, cell)
    elif _cuda():
        _real_run(shell, cell)
    else:
        _idle(cell)


def _parse(line: str) -> _Cost:
    """The declared costs of a `%%gpu` line."""
    try:
        given = dict(word.split("=", 1) for word in shlex.split(line))
    except ValueError as error:
        raise UsageError(f"%%gpu {line}: not a list of name=value; give {_ALLOWED}") from error
    fields = {field.name: field for field in dataclasses.fields(_Cost)}
    unknown = sorted(set(given) - set(fields))
    if unknown:
        raise UsageError(f"%%gpu does not know {', '.join(unknown)}; give {_ALLOWED}")
    missing = [name for name in ("minutes", "vram", "download") if name not in given]
    if missing:
        raise UsageError(f"%%gpu lacks {', '.join(missing)}; give {_ALLOWED}")
    return _Cost(**{name: value if name in ("name", "needs") else _amount(name, value) for name, value in given.items()})


def _amount(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise UsageError(f"%%gpu {name}={text!r} is not a number ≥ 0; give {_ALLOWED}")
    return number


def _prepare(shell: Any, line: str, body: str) -> _Cell:
    """Compile a cell as IPython would, its last expression apart; a syntax error surfaces here, GPU or none."""
    cost = _parse(line)
    # Line 1 stands for the %%gpu line, so that line numbers in a traceback are the cell's.
    source = f"# %%gpu {line}\n" + shell.transform_cell(body)
    number = len(shell.history_manager.input_hist_raw) - 1  # execution_count may already be the next cell's
    file = shell.compile.cache(source, number, raw_code=source)
    tree = shell.compile.ast_parse(source, filename=file)
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not body.rstrip().endswith(";"):
        last = shell.compile(ast.Expression(tree.body.pop().value), file, "eval")
    statements = shell.compile(tree, file, "exec")
    return _Cell(title=cost.name or _first_comment(body), key=key(body), cost=cost, statements=statements, last=last)


def _first_comment(body: str) -> str:
    comment = re.match(r"\s*#\s*(.+)", body)
    return comment[1].strip() if comment else "GPU cell"


def _cuda() -> bool:
    if os.environ.get("LLMCOURSE_GPU") == "0":
        return False
    import torch

    return torch.cuda.is_available()


def _idle(cell: _Cell) -> None:
    """Say what the cell would do and cost."""
    cost = cell.cost
    torch = sys.modules.get("torch")
    why = "kept idle by LLMCOURSE_GPU=0" if torch and torch.cuda.is_available() else "needs a CUDA GPU"
    lines = [
        f"Costs about {cost.minutes:g} min, {cost.vram:g} GB of GPU memory, {cost.download:g} GB of download.",
        _last_run(records().get(cell.key)),
        "To run it in Colab: Runtime ▸ Change runtime type ▸ T4 GPU, then Runtime ▸ Run all.",
        "On your own machine: an NVIDIA GPU and a CUDA build of PyTorch (`llmcourse doctor` checks both).",
    ]
    card("info", f"{cell.title}: not run here ({why})", "\n".join(lines))


def _last_run(run: dict[str, Any] | None) -> str:
    if run is None:
        return "Not measured yet."
    flag = " (random weights: time and memory only)" if run.get("random_weights") else ""
    return (
        f"Last real run: {run.get('minutes', '?')} min, {run.get('vram', '?')} GB "
        f"on {run.get('device', 'an unnamed device')}, {run.get('date', 'undated')}{flag}."
    )


def _stand_in(shell: Any, cell: _Cell) -> None:
    """Run on the CPU against the stand-ins of `zoo` and `data`."""
    __tracebackhide__ = True
    if _refuses(_missing(cell.cost), cell):
        return
    card("info", f"{cell.title}: stand-in run on the CPU, tiny random models in place of the real ones")
    _execute(shell, cell)


def _real_run(shell: Any, cell: _Cell) -> None:
    """Run on the GPU, then say (and record, if asked to) what it took."""
    __tracebackhide__ = True
    import torch

    if _refuses(_missing(cell.cost) or _too_big(torch.cuda, cell.cost), cell):
        return
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        _execute(shell, cell)
        torch.cuda.synchronize()
    except torch.cuda.OutOfMemoryError:
        _explain_out_of_memory(cell)
        raise
    _report(cell, time.perf_counter() - start, torch.cuda)


def _refuses(obstacle: str, cell: _Cell) -> bool:
    """True if the cell cannot run here, said calmly to a learner, loudly where nobody watches."""
    if not obstacle:
        return False
    if "1" in (os.environ.get("LLMCOURSE_STRICT"), os.environ.get("LLMCOURSE_STANDIN")):
        raise RuntimeError(f"{cell.title}: cannot run here: {obstacle}")
    _refused.append(cell.title)
    card("bad", f"{cell.title}: cannot run here", obstacle)
    return True


def _missing(cost: _Cost) -> str:
    """How to install the libraries the cell needs and this environment lacks; "" if none."""
    needed = [library.strip() for library in cost.needs.split(",") if library.strip()]
    missing = [library for library in needed if importlib.util.find_spec(library) is None]
    if not missing:
        return ""
    wanted = list(dict.fromkeys(_requirement(library) for library in missing))
    return f"It needs {', '.join(missing)}: run `%pip install {' '.join(wanted)}`, then this cell again."


def _requirement(library: str) -> str:
    """What to install for a library: the extra of ours that holds it, else the library itself."""
    try:
        declared = importlib.metadata.requires("llmcourse") or []
    except importlib.metadata.PackageNotFoundError:
        declared = []
    for line in declared:
        extra = re.search(r"""extra == ["']([\w-]+)["']""", line)
        if extra and extra[1] != "dev" and re.match(rf"{re.escape(library)}\b", line.replace("-", "_")):
            return f'"llmcourse[{extra[1]}]"'
    return library


def _too_big(cuda: Any, cost: _Cost) -> str:
    """Why the cell cannot fit on this GPU; "" if it can. Warns when it fits but the memory is taken."""
    free_bytes, total = cuda.mem_get_info()
    ours = cuda.memory_reserved() - cuda.memory_allocated()  # cached by torch, so free to us
    if cost.vram * GB > total:
        return (
            f"It needs {cost.vram:g} GB of GPU memory; {cuda.get_device_name()} has {total / GB:.1f} GB. "
            "Take a larger GPU, or read on: nothing below depends on this cell."
        )
    if cost.vram * GB > free_bytes + ours:
        advice = "If it runs out: call `gpu.free()`, and shut down other notebooks that use the GPU."
        card("info", f"Only {(free_bytes + ours) / GB:.1f} GB of GPU memory are free; this cell takes {cost.vram:g} GB", advice)
    return ""


def _execute(shell: Any, cell: _Cell) -> None:
    """Run a cell in the GPU cells' namespace and display its last expression."""
    __tracebackhide__ = True
    from IPython.display import display

    with _names(shell) as names:
        try:
            exec(cell.statements, names)
            value = eval(cell.last, names) if cell.last else None
        except NameError as error:
            if _refused:
                error.add_note(f"An earlier GPU cell could not run here: {_refused[-1]}")
            raise
        if value is not None:
            display(value)


@contextmanager
def _names(shell: Any) -> Iterator[dict[str, Any]]:
    """The GPU cells' globals, with the notebook's names copied in wherever no GPU cell made one of its own."""
    notebook = shell.user_ns
    copied = {name: value for name, value in notebook.items() if name not in _own}
    for name in _space.keys() - _own:
        del _space[name]
    _space.update(copied)
    shell.user_ns = _space  # where %timeit and {name} in !commands look names up
    try:
        yield _space
    finally:
        shell.user_ns = notebook
        made = {name for name, value in _space.items() if name not in copied or value is not copied[name]}
        _own.clear()
        _own.update(name for name in made if not name.startswith("__"))


def _explain_out_of_memory(cell: _Cell) -> None:
    card(
        "bad",
        f"{cell.title}: the GPU's memory ran out",
        f"This cell takes about {cell.cost.vram:g} GB. In this order: `gpu.free()` and run the GPU cells again from the "
        "first; shut down other notebooks; halve the batch size or the sequence length; take a smaller model.",
    )


def _report(cell: _Cell, seconds: float, cuda: Any) -> None:
    run = {
        "name": cell.title,
        "minutes": round(seconds / 60, 2),
        "vram": round(cuda.max_memory_allocated() / GB, 2),
        "device": cuda.get_device_name(),
        "date": date.today().isoformat(),
        "random_weights": os.environ.get("LLMCOURSE_RECORD") == "random-weights",
    }
    took = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
    announced = f"Announced: {cell.cost.minutes:g} min, {cell.cost.vram:g} GB."
    card("good", f"{cell.title}: {took}, at most {run['vram']:g} GB of GPU memory on {run['device']}", announced)
    if os.environ.get("LLMCOURSE_RECORD") in ("1", "random-weights"):
        _record(cell.key, run)


def _record(name: str, run: dict[str, Any]) -> None:
    """Add one run to the file, whole or not at all, also while another notebook does the same."""
    from filelock import FileLock

    with FileLock(Path(tempfile.gettempdir()) / "llmcourse-gpu-runs.lock"):
        text = json.dumps(records() | {name: run}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        part = RECORDS.with_suffix(f".{os.getpid()}.part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, RECORDS)


register()
