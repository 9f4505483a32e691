"""Lints over a notebook's code: what would work on the author's machine and fail a learner without a GPU or a network.

Does:     reads each cell's syntax tree, `%%gpu` bodies included; follows a hub name through one variable.
Leaves out: names put together at run time; in CI those reach a kernel without a network, and fail there.
"""

import ast
import builtins
import re
import symtable
from collections.abc import Callable, Iterator

from nbformat import NotebookNode

from llmcourse.cli.fingerprint import Code, code_of

__all__ = ["gpu_names", "hub_names"]

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]+/[A-Za-z0-9][\w.-]+")
# A hub name nearly always has a capital, a digit, a dash or an underscore; "nats/token" and "text/html" have none that count.
MIME, FILE = r"(?:text|image|audio|video|application)/.*", r".*\.(?:py|json|png|svg|txt|csv|md|ipynb|safetensors)"
NO_HUB_NAME = re.compile(rf"[a-z]+/[a-z]+|{MIME}|{FILE}")
DOORS = {"zoo", "data"}
IDS_AND_TEXT = {"exercise", "hint", "solution", "claim", "expect", "print", "register", "card", "figure", "table"}
LOADERS = {"from_pretrained", "load_dataset", "snapshot_download", "hf_hub_download"}


def hub_names(nb: NotebookNode) -> Iterator[str]:
    """Hub names handed to anything but `zoo` and `data`, which CI could then not swap for stand-ins."""
    trees = [code.tree for code in code_of(nb)]
    for name in sorted({name for tree in trees for name in _handed_over(tree, trees)}):
        yield f'the hub name "{name}" goes straight to a library; load it through zoo or data, which CI can swap'


def _handed_over(tree: ast.AST, trees: list[ast.AST]) -> Iterator[str]:
    """Hub names in `tree` that reach something other than zoo and data, directly or through a variable."""
    for call in _walk(tree, ast.Call):
        if not _is_exempt(call):
            yield from _constants([*call.args, *(keyword.value for keyword in call.keywords)])
            if _name(call) in LOADERS:
                yield from _constants(call.args[:1], without_owner=True)
    for target, value in _bindings(tree):
        names = {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}
        if _reaches_a_library(names, trees):
            yield from _constants([value])


def _walk(tree: ast.AST, kind: type | tuple[type, ...]) -> Iterator:
    return (node for node in ast.walk(tree) if isinstance(node, kind))


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _is_exempt(call: ast.Call) -> bool:
    through_door = isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") in DOORS
    return through_door or _name(call) in IDS_AND_TEXT


def _constants(values: list[ast.expr], without_owner: bool = False) -> Iterator[str]:
    """String constants that name something on the hub; below a nested call they are that call's affair."""
    waiting = list(values)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_hub_name(node.value, without_owner):
            yield node.value
        elif not isinstance(node, ast.Call):
            waiting.extend(ast.iter_child_nodes(node))


def _is_hub_name(text: str, without_owner: bool) -> bool:
    if without_owner:  # "gpt2" has no owner, but a loader takes it from the hub all the same
        return re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", text) is not None
    return HUB_NAME.fullmatch(text) is not None and NO_HUB_NAME.fullmatch(text) is None


def _bindings(tree: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    for node in _walk(tree, (ast.Assign, ast.AnnAssign, ast.For, ast.comprehension, ast.NamedExpr)):
        value = node.iter if isinstance(node, ast.For | ast.comprehension) else node.value
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from ((target, value) for target in targets if value is not None)


def _reaches_a_library(names: set[str], trees: list[ast.AST]) -> bool:
    """Whether one of the variables is an argument of a call that is neither zoo's nor data's."""
    for call in (call for tree in trees for call in _walk(tree, ast.Call) if not _is_exempt(call)):
        arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
        if any(isinstance(node, ast.Name) and node.id in names for node in _outside_calls(arguments)):
            return True
    return False


def _outside_calls(values: list[ast.expr]) -> Iterator[ast.AST]:
    waiting = list(values)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.Call):
            waiting.extend(ast.iter_child_nodes(node))


def gpu_names(nb: NotebookNode) -> Iterator[str]:
    """Names that a `%%gpu` cell makes and an ordinary cell uses: a learner without a GPU would meet a NameError."""
    codes = code_of(nb)
    ordinary = [code for code in codes if not code.is_gpu]
    on_gpu = set().union(*(_symbols(code, _is_bound) for code in codes if code.is_gpu))
    known = set(dir(builtins)).union(*(_symbols(code, _is_bound) for code in ordinary))
    used = set().union(*(_symbols(code, symtable.Symbol.is_referenced) for code in ordinary))
    for name in sorted((on_gpu - known) & used):
        yield f"`{name}` exists in a %%gpu cell only, but an ordinary cell uses it"


def _is_bound(symbol: symtable.Symbol) -> bool:
    return symbol.is_assigned() or symbol.is_imported()


def _symbols(code: Code, wanted: Callable[[symtable.Symbol], bool]) -> set[str]:
    """Names of the notebook's own namespace in a cell that satisfy `wanted`, including globals inside functions."""
    top = symtable.symtable(code.text, "cell", "exec")
    names = {symbol.get_name() for symbol in top.get_symbols() if wanted(symbol)}
    waiting = list(top.get_children())
    while waiting:
        table = waiting.pop()
        names |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global() and wanted(symbol)}
        waiting.extend(table.get_children())
    return names
