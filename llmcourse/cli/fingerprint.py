"""The fingerprint of a notebook: one hash over everything its stored outputs were computed from.

    cells ─┬─► llmcourse modules they import ─► modules those import ─► …  ─┐
           └─► exercise ids ─► <topic>/exercises.py                         ├─► sha256
               data and weights that lie beside those modules ──────────────┘

Does:     follows imports statically (`ast`), with data files a module names and the embedded models when `zoo` is reached.
Leaves out: the install cell and the Colab badge, so a fork's new address or a release makes no output stale; other libraries'
          versions, which constraints.txt pins.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from nbformat import NotebookNode

__all__ = ["Code", "code_of", "source_hash", "used_files"]

PACKAGE = Path(__file__).parents[1]
EXERCISE_CALLS = {"exercise", "hint", "solution"}
MODEL_FILES = {".json", ".safetensors"}


class Code:
    """A code cell as Python: its magics and shell commands translated, its body parsed also under a `%%gpu` line."""

    def __init__(self, source: str) -> None:
        from IPython.core.inputtransformer2 import TransformerManager

        first, _, rest = source.partition("\n")
        self.is_gpu = first.startswith("%%gpu")
        body = rest if self.is_gpu else source
        if not self.is_gpu and first.startswith(("%%time", "%%capture")):
            body = rest
        self.text = TransformerManager().transform_cell(body)
        try:
            self.tree = ast.parse(self.text)
        except SyntaxError:  # running the cell reports it; here there is nothing to read
            self.text, self.tree = "", ast.Module(body=[], type_ignores=[])


def code_of(nb: NotebookNode) -> list[Code]:
    """The notebook's code cells, install cell excepted, as Python."""
    return [Code(cell.source) for cell in nb.cells if cell.cell_type == "code" and not _is_install(cell)]


def source_hash(nb: NotebookNode) -> str:
    """The hexadecimal sha256 over the notebook's cells and the package files they use."""
    digest = hashlib.sha256()
    for cell in nb.cells:
        if not _is_install(cell):
            _add(digest, cell.cell_type, _without_badge(cell.source).encode())
    for file in sorted(used_files(nb)):
        _add(digest, file.relative_to(PACKAGE).as_posix(), _content(file))
    return digest.hexdigest()


def used_files(nb: NotebookNode) -> set[Path]:
    """The package's files the notebook's outputs depend on: modules, the data they name, the embedded models."""
    modules: set[Path] = set()
    waiting = [file for code in code_of(nb) for file in _imports(code.tree, "")]
    while waiting:
        file = waiting.pop()
        if file not in modules:
            modules.add(file)
            waiting.extend(_imports(ast.parse(file.read_text(encoding="utf-8")), _parent_name(file)))
    return modules | {data for module in modules for data in _data_beside(module)}


def _imports(tree: ast.AST, package: str) -> Iterator[Path]:
    """Files of llmcourse that the statements and exercise ids in `tree` lead to; `package` resolves relative imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            for alias in node.names:
                yield from _files(f"{base}.{alias.name}")
        elif isinstance(node, ast.Call) and _called(node) in EXERCISE_CALLS:
            for topic in _topics(node.args):
                yield from _files(f"llmcourse.{topic}.exercises")


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _topics(arguments: Iterable[ast.expr]) -> Iterator[str]:
    for argument in arguments:
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str) and "/" in argument.value:
            yield argument.value.split("/")[0]


def _files(dotted: str) -> Iterator[Path]:
    """The source files of a dotted name and of its parents; names that are no module (functions, classes) end the walk."""
    head, *names = dotted.split(".")
    if head != PACKAGE.name:
        return
    folder = PACKAGE
    yield folder / "__init__.py"
    for name in names:
        module, folder = folder / f"{name}.py", folder / name
        if module.is_file():
            yield module
        if not (folder / "__init__.py").is_file():
            return
        yield folder / "__init__.py"


def _parent_name(file: Path) -> str:
    return ".".join([PACKAGE.name, *file.parent.relative_to(PACKAGE).parts])


def _data_beside(module: Path) -> Iterator[Path]:
    if module == PACKAGE / "zoo.py":
        yield from (file for file in (PACKAGE / "models").rglob("*") if file.suffix in MODEL_FILES)
    text = module.read_text(encoding="utf-8")
    yield from (file for file in module.parent.glob("*.json") if file.name in text)


def _is_install(cell: NotebookNode) -> bool:
    return "install" in cell.metadata.get("tags", [])


def _without_badge(source: str) -> str:
    return "\n".join(line for line in source.splitlines() if "colab.research.google.com" not in line)


def _content(file: Path) -> bytes:
    content = file.read_bytes()
    # A checkout on Windows may write CRLF; the outputs do not depend on it.
    return content if file.suffix == ".safetensors" else content.replace(b"\r\n", b"\n")


def _add(digest: "hashlib._Hash", label: str, content: bytes) -> None:
    digest.update(f"{label}:{len(content)}:".encode())
    digest.update(content)
