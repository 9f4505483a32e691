"""Has the learner begun? An exercise left as it came is not a wrong answer.

Does:     reads the function's source where it is at hand (notebooks, files), else its bytecode.
Leaves out: judging what has been written.
Source:   own.
"""

from __future__ import annotations

import ast
import dis
import inspect
import textwrap
from collections.abc import Callable
from types import CodeType

from llmcourse.exercise.guard import code_of

__all__ = ["unfinished"]


def unfinished(fn: Callable) -> str | None:
    """What is still to be written in `fn`, or None when it is a real attempt.

    A body of only a docstring, `pass`, `...` or `raise NotImplementedError` is unfinished; so is any `...` left in the place of a
    value (`x = ...`, `return ...`, `f(...)`). Indexing such as `x[..., 0]` is not.
    """
    code = code_of(fn)
    if code is None:
        return None
    tree = _syntax(fn)
    return _unfinished_code(code) if tree is None else _unfinished_syntax(tree, code.co_firstlineno - 1)


def _syntax(fn: Callable) -> ast.FunctionDef | None:
    """The function's syntax tree, where its source is at hand and really is this function's."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(fn))))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    node = tree.body[0] if tree.body else None
    return node if isinstance(node, ast.FunctionDef) and node.name == code_of(fn).co_name else None


def _unfinished_syntax(tree: ast.FunctionDef, before: int) -> str | None:
    """`before` is the number of lines above the source, so that the line named is the cell's own."""
    body = [node for node in tree.body if not _is_text(node)]
    if all(isinstance(node, ast.Pass) or _is_blank_statement(node) or _is_not_implemented(node) for node in body):
        return ""
    nodes = (node for statement in tree.body for node in ast.walk(statement))
    blanks = [node.lineno for node in nodes if _is_blank_statement(node) or _has_blank(node)]
    return f"Line {before + min(blanks)} is still `...`." if blanks else None


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_dots(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis


def _is_blank_statement(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and _is_dots(node.value)


def _is_not_implemented(node: ast.AST) -> bool:
    if not isinstance(node, ast.Raise) or node.exc is None:
        return False
    raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
    return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"


def _has_blank(node: ast.AST) -> bool:
    """Whether `...` stands where this node needs a value; inside an index it is meant."""
    match node:
        case ast.Assign() | ast.AnnAssign() | ast.AugAssign() | ast.Return():
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        case ast.Call():
            values = [*node.args, *(keyword.value for keyword in node.keywords)]
        case ast.BinOp():
            values = [node.left, node.right]
        case _:
            return False
    return any(map(_is_dots, values))


_SILENT = {"RESUME", "NOP", "COPY_FREE_VARS"}
_RETURNING = {"LOAD_CONST", "RETURN_CONST", "RETURN_VALUE", "POP_TOP"}


def _unfinished_code(code: CodeType) -> str | None:
    """The same question without the source: does the bytecode do nothing but return, or store or return `...`?"""
    steps = [step for step in dis.get_instructions(code) if step.opname not in _SILENT]
    names = [step.opname for step in steps]
    if all(name in _RETURNING and step.argval in (None, ...) for name, step in zip(names, steps, strict=True)):
        return ""
    if names[-1] == "RAISE_VARARGS" and code.co_names == ("NotImplementedError",) and len(steps) <= 6:
        return ""
    used = (name.startswith(("STORE", "RETURN")) for name in names[1:])
    left = any(step.argval is ... and stored for step, stored in zip(steps, used, strict=False)) or (
        any(step.opname == "RETURN_CONST" and step.argval is ... for step in steps)
    )
    return "A line is still `...`." if left else None
