"""What this machine can run, and the fix for each thing that stands in the way.

    blocker: the course cannot run · warning: a part of it will not, or slowly · ok · idle: not here, and not needed

Does:     checks Python, packages against the ranges in the package's own metadata, processor, memory, disk, CUDA with its real
          number formats, Jupyter's widgets, and combinations of packages known to break.
Leaves out: repairs: it prints the command, the learner decides.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from packaging.requirements import Requirement

__all__ = ["Finding", "examine", "has_blocker", "render"]

Status = Literal["ok", "idle", "warning", "blocker"]
GIB = 2**30
# peft refuses an older torchao as soon as it looks for quantised layers (peft.import_utils.is_torchao_available).
TORCHAO_MINIMUM = "0.16.0"


@dataclass(frozen=True)
class Finding:
    """One thing examined: how it stands, what was found, and the way out where there is a problem."""

    status: Status
    subject: str
    found: str
    fix: str = ""


def examine() -> Iterator[Finding]:
    """Yield the findings one by one, cheap checks first; the CUDA check imports torch, which takes a few seconds."""
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:  # a broken library must not stop the other checks
            name = check.__name__.strip("_")
            yield Finding("warning", name, f"cannot be examined ({type(error).__name__}: {str(error)[:200]})", "read the message")


def has_blocker(findings: list[Finding]) -> bool:
    """Whether something found keeps the course from running at all."""
    return any(finding.status == "blocker" for finding in findings)


def render(findings: list[Finding]) -> object:
    """Return the findings as a rich table, with the fix under each problem."""
    from rich.table import Table
    from rich.text import Text

    signs = {"ok": ("✓", "green"), "idle": ("·", "dim"), "warning": ("!", "yellow"), "blocker": ("✗", "red")}
    table = Table(box=None, show_header=False, padding=(0, 1))
    for finding in findings:
        sign, style = signs[finding.status]
        told = Text(finding.found)
        if finding.fix:
            told.append(f"\n→ {finding.fix}", style="cyan")
        table.add_row(Text(sign, style=style), Text(finding.subject, style="bold"), told)
    return table


# ------------------------------------------------------------------------------------------------------------ the software


def _python() -> Iterator[Finding]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    try:
        supported = metadata.metadata("llmcourse")["Requires-Python"]
    except metadata.PackageNotFoundError:
        yield Finding("blocker", "Python", f"{found}; llmcourse is not installed in it", "pip install -e .")
        return
    from packaging.specifiers import SpecifierSet

    if platform.python_version() in SpecifierSet(supported, prereleases=True):
        yield Finding("ok", "Python", found)
    else:
        yield Finding("blocker", "Python", f"{found}; the course needs {supported}", f"install Python {supported}")


def _packages() -> Iterator[Finding]:
    """Compare what is installed with what this very version of llmcourse declares."""
    from packaging.requirements import Requirement

    declared = [Requirement(line) for line in metadata.requires("llmcourse") or []]
    core = [requirement for requirement in declared if requirement.marker is None]
    problems = [problem for requirement in core if (problem := _package(requirement))]
    yield from problems
    if not problems:
        yield Finding("ok", "packages", f"{len(core)} required packages are within the supported ranges")
    yield from _extras([requirement for requirement in declared if requirement.marker is not None])


def _package(requirement: Requirement) -> Finding | None:
    version, fix = _version(requirement.name), f'pip install "{requirement.name}{requirement.specifier}"'
    if version is None:
        return Finding("blocker", requirement.name, "is not installed", fix)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding("blocker", requirement.name, f"{version} is installed; supported is {requirement.specifier}", fix)
    return None


def _extras(declared: list[Requirement]) -> Iterator[Finding]:
    """Report optional packages: missing ones are nobody's problem until a notebook asks for them."""
    named = {requirement.name: requirement for requirement in declared if requirement.name != "llmcourse"}
    missing = [name for name in named if _version(name) is None]
    for name, requirement in named.items():
        if name not in missing and (problem := _package(requirement)):
            yield Finding("warning", name, problem.found, problem.fix)
    if missing:
        yield Finding("idle", "optional packages", f"not installed: {', '.join(missing)}", 'pip install "llmcourse[dev]" has all')


def _conflicts() -> Iterator[Finding]:
    """Report combinations that import, and then fail somewhere else."""
    from packaging.version import Version

    torchao = _version("torchao")
    if torchao and _version("peft") and Version(torchao) < Version(TORCHAO_MINIMUM):
        found = f"{torchao} makes peft raise when it attaches an adapter; peft wants {TORCHAO_MINIMUM} or none"
        yield Finding("warning", "torchao", found, "pip uninstall torchao")
    for companion in ("torchvision", "torchaudio"):
        yield from _torch_companion(companion)


def _torch_companion(name: str) -> Iterator[Finding]:
    """A torchvision built for another torch breaks the import of transformers' models."""
    from packaging.requirements import Requirement

    if _version(name) is None or _version("torch") is None:
        return
    for line in metadata.requires(name) or []:
        wanted = Requirement(line)
        if wanted.name == "torch" and not wanted.specifier.contains(_version("torch"), prereleases=True):
            found = f"{_version(name)} was built for torch{wanted.specifier}, but torch {_version('torch')} is installed"
            yield Finding("warning", name, found, f"pip uninstall {name} (the course does not use it)")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# ------------------------------------------------------------------------------------------------------------- the machine


def _cores() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) > cores:
        found = f"{cores} cores, but OMP_NUM_THREADS={threads}: more threads than cores run many times slower"
        yield Finding("warning", "cores", found, f"set OMP_NUM_THREADS={cores}, or unset it")
    elif cores == 1:
        yield Finding("warning", "cores", "1 core; the notebooks' minutes are for 2", "expect about twice the time")
    else:
        yield Finding("ok", "cores", f"{cores}; set OMP_NUM_THREADS=1 when you run several notebooks at once")


def _memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    if memory.available < 3 * GIB:
        yield Finding("warning", "memory", f"{found}; a notebook may use 3 GiB", "close other programs, or use Colab")
    else:
        yield Finding("ok", "memory", found)


def _disk() -> Iterator[Finding]:
    home = Path(os.environ.get("LLMCOURSE_HOME", Path.home() / ".llmcourse"))
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        fix = "set LLMCOURSE_HOME to a folder of yours"
        yield Finding("warning", "disk", f"{existing} cannot be written: progress will be lost", fix)
    elif free < 2 * GIB:
        found = f"{free / GIB:.1f} GiB free; real models need 1 to 20 GiB"
        yield Finding("warning", "disk", found, "free some, or skip the GPU cells")
    else:
        yield Finding("ok", "disk", f"{free / GIB:.0f} GiB free")


def _cuda() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield Finding("ok", "GPU", _device(index))
    elif shutil.which("nvidia-smi") and torch.version.cuda is None:
        fix = "follow https://pytorch.org/get-started/locally for the CUDA build"
        yield Finding("warning", "GPU", f"NVIDIA driver found, but torch {torch.__version__} is a CPU build", fix)
    elif shutil.which("nvidia-smi"):
        found = f"NVIDIA driver found, but torch {torch.__version__} (CUDA {torch.version.cuda}) sees no device"
        yield Finding("warning", "GPU", found, "update the driver, or free the device")
    else:
        yield Finding("idle", "GPU", "no CUDA device: GPU cells stay idle and tell what they would do; all else runs")


def _device(index: int) -> str:
    """Describe a CUDA device by what its hardware computes with: bfloat16 that torch only emulates does not count."""
    import torch

    properties = torch.cuda.get_device_properties(index)
    major, minor = torch.cuda.get_device_capability(index)
    with torch.cuda.device(index):
        formats = ["float32", "float16"] + ["bfloat16"] * torch.cuda.is_bf16_supported(including_emulation=False)
    formats += ["float8"] * ((major, minor) >= (8, 9))
    without = "" if "bfloat16" in formats else " (no bfloat16: the course uses float16 here)"
    memory = f"{properties.total_memory / GIB:.0f} GiB, compute capability {major}.{minor}"
    return f"{properties.name}, {memory}, CUDA {torch.version.cuda}: {', '.join(formats)}{without}"


# --------------------------------------------------------------------------------------------------------------- the desk


def _jupyter() -> Iterator[Finding]:
    if "google.colab" in sys.modules or os.environ.get("COLAB_RELEASE_TAG"):
        yield Finding("ok", "Jupyter", "Google Colab")
    elif importlib.util.find_spec("jupyterlab") is None:
        fix = 'pip install "llmcourse[lab]", or use VS Code or Colab'
        yield Finding("idle", "Jupyter", "JupyterLab is not installed here", fix)
    elif importlib.util.find_spec("jupyterlab_widgets") is None:
        fix = "pip install --force-reinstall ipywidgets jupyterlab_widgets"
        yield Finding("warning", "widgets", "JupyterLab lacks the widgets' extension: sliders stay static pictures", fix)
    else:
        yield Finding("ok", "Jupyter", f"JupyterLab {_version('jupyterlab')}, ipywidgets {_version('ipywidgets')}")
    yield from _browser()


def _browser() -> Iterator[Finding]:
    import webbrowser

    try:
        webbrowser.get()
    except webbrowser.Error:
        fix = "llmcourse lab --no-browser prints the address to open elsewhere"
        yield Finding("idle", "browser", "none found on this machine", fix)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _packages,
    _conflicts,
    _cores,
    _memory,
    _disk,
    _jupyter,
    _cuda,
)
