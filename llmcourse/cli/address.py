"""The course's public address, written once in pyproject.toml and derived everywhere else.

    pyproject.toml [project.urls] Repository, version ──► Colab badges · install cells · README's clone and CI addresses

Does:     rewrites README.md, CONTRIBUTING.md and the notebooks after the address or the version has changed; a fork runs it once.
Leaves out: other links inside notebooks (part of their fingerprint); hosts other than github.com (Colab opens only those).
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .checkout import checkout, notebooks
from .lab import write_atomically

__all__ = ["Address", "badge", "differences", "install_cell", "is_install_cell", "read_address", "rewrite"]

COLAB = "https://colab.research.google.com"
GITHUB = r"https://github\.com/[\w.-]+/[\w-]+"
# Colab's torchao makes peft raise; these extras bring peft in.
PEFT_EXTRAS = {"peft", "quantization", "rlhf"}

INSTALL = """\
# Installs the course where it is missing, as on Colab; does nothing where you already have it.
import importlib.metadata, importlib.util, os, pathlib, sys, tempfile

if importlib.util.find_spec("llmcourse") is None:
    {course}
    stay = {{"torch", "torchvision", "torchaudio", "numpy", "transformers", "ipywidgets"}}  # versions pip must not move
    here = [d for d in importlib.metadata.distributions() if d.name in stay]
    keep = pathlib.Path(tempfile.gettempdir(), "llmcourse-keep.txt")
    keep.write_text("\\n".join(f"{{d.name}}=={{d.version.split('+')[0]}}" for d in here))
    %pip install -q "{{course}}" -c "{{keep}}"
{torchao}    importlib.invalidate_caches()
    if importlib.util.find_spec("llmcourse") is None:
        raise RuntimeError("pip could not install llmcourse: read its message above, then restart and run this cell again")"""
COURSE = 'course = os.environ.get("LLMCOURSE_WHEEL") or "llmcourse @ git+{url}@{tag}"'
COURSE_WITH_EXTRAS = """\
wheel = os.environ.get("LLMCOURSE_WHEEL")
    course = f"{{wheel}}[{extras}]" if wheel else "llmcourse[{extras}] @ git+{url}@{tag}\""""
TORCHAO = """\
    if "google.colab" in sys.modules:  # its torchao is too old for peft, which works without
        %pip uninstall -q -y torchao
"""


@dataclass(frozen=True)
class Address:
    """Where the course is published: the repository, the release tag its notebooks belong to, the package's extras."""

    url: str
    tag: str
    extras: frozenset[str] = frozenset()

    @property
    def repository(self) -> str:
        """`owner/name`. Raises ValueError where the address is not a GitHub repository."""
        found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w-]+)", self.url)
        if found is None:
            raise ValueError(
                f"address {self.url!r} in pyproject.toml is not a GitHub repository; Colab needs https://github.com/owner/name"
            )
        return found[1]


def read_address(root: Path | None = None) -> Address:
    """Read the address, the version and the extras from the pyproject.toml in `root` (default: the checkout)."""
    text = ((root or checkout()) / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    url = project["urls"]["Repository"].removesuffix(".git").rstrip("/")
    return Address(url, f"v{project['version']}", frozenset(project.get("optional-dependencies", {})))


def badge(stem: str, address: Address | None = None) -> str:
    """Return the markdown badge that opens notebook `stem` (such as `01_transformer`) in Colab."""
    return f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({_colab(stem, address or read_address())})"


def install_cell(stem: str, extras: Iterable[str] | None = None, address: Address | None = None) -> str:
    """Return the source of notebook `stem`'s install cell.

    It also installs `extras` of pyproject.toml; by default the one named like the notebook's topic, where there is one.
    """
    address = address or read_address()
    chosen = {stem.partition("_")[2]} & address.extras if extras is None else set(extras)
    course = (COURSE_WITH_EXTRAS if chosen else COURSE).format(extras=",".join(sorted(chosen)), url=address.url, tag=address.tag)
    return INSTALL.format(course=course, torchao=TORCHAO if PEFT_EXTRAS & chosen else "")


def is_install_cell(source: str, address: Address | None = None) -> bool:
    """Whether `source` is an install cell of this address and release, with any extras."""
    return source == install_cell("", _extras(source), address)


def differences(root: Path | None = None) -> dict[Path, str]:
    """Return the files under `root` that do not carry its address, with the text they should have."""
    root = root or checkout()
    address = read_address(root)
    texts = {path: _page(path, address) for name in ("README.md", "CONTRIBUTING.md") if (path := root / name).is_file()}
    texts |= {path: _notebook(path, address) for path in notebooks(root / "notebooks")}
    return {path: text for path, text in texts.items() if text != path.read_text(encoding="utf-8")}


def rewrite(root: Path | None = None) -> list[Path]:
    """Write the address into every file that differs and return those files."""
    found = differences(root)
    for path, text in found.items():
        write_atomically(path, text)
    return list(found)


def _colab(stem: str, address: Address) -> str:
    return f"{COLAB}/github/{address.repository}/blob/{address.tag}/notebooks/{stem}.ipynb"


def _readdress(text: str, address: Address) -> str:
    """Put the address into every Colab link, clone command, pip address and CI badge of a text."""
    text = _recolab(text, address)
    text = re.sub(rf"git\+{GITHUB}@[\w.-]+", f"git+{address.url}@{address.tag}", text)
    text = re.sub(rf"git clone {GITHUB}", f"git clone {address.url}", text)
    text = re.sub(r"(git clone \S+\ncd )[\w.-]+", rf"\g<1>{address.repository.partition('/')[2]}", text)
    return re.sub(rf"{GITHUB}/(actions|issues|releases)\b", rf"{address.url}/\1", text)


def _recolab(text: str, address: Address) -> str:
    return re.sub(rf"{COLAB}/github/[^)\s]*/notebooks/(\w+)\.ipynb", lambda link: _colab(link[1], address), text)


def _page(path: Path, address: Address) -> str:
    return _readdress(path.read_text(encoding="utf-8"), address)


def _notebook(path: Path, address: Address) -> str:
    """Return the notebook's text with its Colab links and its install cell as they should be; its fingerprint leaves both out."""
    text = path.read_text(encoding="utf-8")
    nb = json.loads(text)
    before = json.dumps(nb)
    for cell in nb["cells"]:
        _readdress_cell(cell, path.stem, address)
    if json.dumps(nb) == before:
        return text
    return json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _readdress_cell(cell: dict, stem: str, address: Address) -> None:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        cell["source"] = _recolab(source, address).splitlines(keepends=True)
    elif "install" in cell["metadata"].get("tags", []):
        cell["source"] = install_cell(stem, _extras(source), address).splitlines(keepends=True)


def _extras(source: str) -> list[str]:
    """Return the extras that an install cell asks for."""
    found = re.search(r"llmcourse\[([\w,]+)\] @ git", source)
    return found[1].split(",") if found else []
