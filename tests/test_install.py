"""A lone notebook in an empty environment, as Colab opens it: its install cell installs, moves nothing, and the rest runs.

Two environments: torch and numpy as Colab brings them, at this repository's pins; and the oldest versions our ranges admit. The
oldest torch is taken in CI only: where no index of CPU builds is set (PIP_EXTRA_INDEX_URL, see README.md) it brings gigabytes of
CUDA, so elsewhere torch stays at its pin. pip needs its index for these tests.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from llmcourse.cli.notebooks import execute

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "00_start_here.ipynb"
PRESENT = ("torch", "numpy")  # Colab has them before the first cell


def pip(python: Path, *arguments: str) -> None:
    # Most of what is installed here is never imported: compiling it would take a third of the time.
    done = subprocess.run(
        [python, "-m", "pip", *arguments], capture_output=True, text=True, env={**os.environ, "PIP_NO_COMPILE": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def versions(python: Path) -> dict[str, str]:
    done = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    return {canonicalize_name(package["name"]): package["version"] for package in json.loads(done.stdout)}


def oldest() -> dict[str, str]:
    """The lower bound of every dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = {r.name: _lower_bound(r) for r in map(Requirement, project["dependencies"])}
    return bounds if os.environ.get("CI") == "true" else bounds | {"torch": _pinned("torch")}


def _lower_bound(requirement: Requirement) -> str:
    return next(part.version for part in requirement.specifier if part.operator == ">=")


def _release(version: str) -> Version:
    """The version without its build's name: 2.17.0 is 2.17, 2.13.0+cpu is 2.13.0."""
    return Version(Version(version).public)


def _pinned(name: str) -> str:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{name}=="))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip(Path(sys.executable), "wheel", str(ROOT), "--no-deps", "-q", "-w", str(folder))
    return next(folder.glob("*.whl"))


@pytest.fixture
def python(tmp_path: Path) -> Iterator[Path]:
    """The Python of an empty environment, which goes again: it holds gigabytes."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    yield tmp_path / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    shutil.rmtree(tmp_path / "venv", ignore_errors=True)


def lone_notebook(folder: Path) -> Path:
    folder.mkdir()
    return Path(shutil.copy(NOTEBOOK, folder))


def run_alone(python: Path, wheel: Path, folder: Path) -> None:
    """Run the notebook with nothing of the repository within reach."""
    execute(
        lone_notebook(folder), python=str(python), env={"LLMCOURSE_WHEEL": str(wheel), "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    )


def test_the_install_cell_moves_neither_numpy_nor_torch(python: Path, wheel: Path, tmp_path: Path):
    pip(python, "install", "-q", "ipykernel", *PRESENT, "-c", str(ROOT / "constraints.txt"))
    before = versions(python)
    run_alone(python, wheel, tmp_path / "alone")
    after = versions(python)
    assert {name: after[name] for name in PRESENT} == {name: before[name] for name in PRESENT}
    assert "llmcourse" in after


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="numpy 2.1, our lower bound, has wheels up to Python 3.13")
def test_the_oldest_versions_our_ranges_admit_run_the_notebook(python: Path, wheel: Path, tmp_path: Path):
    bounds = oldest()
    pip(python, "install", "-q", "ipykernel", *(f"{name}=={version}" for name, version in bounds.items()))
    run_alone(python, wheel, tmp_path / "alone")
    after = versions(python)
    assert {name: _release(after[name]) for name in bounds} == {name: _release(bound) for name, bound in bounds.items()}
