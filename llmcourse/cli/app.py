"""The commands of `llmcourse`: examine the machine, run notebooks, see progress, remake what the course ships.

Does:     the commands below, and those that topics add in `llmcourse/<topic>/commands.py` (`register(app)`, `MEASUREMENTS`).
Leaves out: the work itself, which each command imports when it is called, so that `llmcourse --help` stays quick.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Any

import typer

import llmcourse

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["MEASUREMENTS", "add_topics", "build", "main", "speak_utf8"]

MEASUREMENTS: dict[str, Callable[..., None]] = {}


def main() -> None:
    """Run the command line."""
    speak_utf8()
    build()()


def speak_utf8() -> None:
    """Write UTF-8 whatever the console's code page: Windows' older ones have no ✓ and would raise."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")


def build() -> typer.Typer:
    """Return the application with the course's commands and those of every topic."""
    app = typer.Typer(
        name="llmcourse", help="Large language models, built from nothing.", no_args_is_help=True, pretty_exceptions_enable=False
    )
    app.callback()(version)
    for command in (doctor, lab, run, claims, measure, pin, address):
        app.command()(command)
    progress = typer.Typer(help="What has been solved: yours, or a whole class's.", no_args_is_help=True)
    for command in (show, merge, export, import_):
        progress.command(command.__name__.strip("_"))(command)
    app.add_typer(progress, name="progress")
    add_topics(app)
    return app


def add_topics(app: typer.Typer) -> None:
    """Add the commands of every topic; a topic that cannot be imported is told of and left out, so that `doctor` still runs."""
    for topic in iter_modules(llmcourse.__path__):
        if not topic.ispkg or not Path(llmcourse.__path__[0], topic.name, "commands.py").is_file():
            continue
        try:
            commands = import_module(f"llmcourse.{topic.name}.commands")
        except ImportError as error:
            print(f"the commands of {topic.name} are missing ({error}); llmcourse doctor says why", file=sys.stderr)
            continue
        commands.register(app)
        MEASUREMENTS.update(getattr(commands, "MEASUREMENTS", {}))


# --------------------------------------------------------------------------------------------------------------- commands


def _print_version(asked: bool) -> bool:
    if asked:
        print(llmcourse.__version__)
        raise typer.Exit
    return asked


def version(
    asked: Annotated[bool, typer.Option("--version", help="Print it and stop.", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Large language models, built from nothing and proven equal to the libraries you use at work."""


def doctor() -> None:
    """Examine this machine and print the fix for each problem; exit code 1 when the course cannot run."""
    from .doctor import examine, has_blocker, render

    findings = list(examine())
    console().print(render(findings))
    raise typer.Exit(has_blocker(findings))


def lab(
    browser: Annotated[bool, typer.Option(help="Open a browser window.")] = True,
    port: Annotated[int | None, typer.Option(help="Serve on this port; default: the first free one from 8888.")] = None,
    copy_only: Annotated[bool, typer.Option("--copy-only", help="Copy the notebooks, start nothing.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Your folder; default: my_notebooks in the checkout.")] = None,
) -> None:
    """Copy the notebooks to your own folder (edited ones are never overwritten) and open JupyterLab there."""
    from .checkout import checkout
    from .lab import copy_notebooks, start_lab

    with told():
        root = checkout()
        own = (folder or root / "my_notebooks").resolve()
        for line in copy_notebooks(root / "notebooks", own):
            print(line)
        if not copy_only:
            import_module("jupyterlab")
            raise typer.Exit(start_lab(own / "00_start_here.ipynb", browser=browser, port=port))


def run(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NOTEBOOK]...", help="Number, topic, path; default: all.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Let GPU cells use the GPU and the hub.")] = False,
    standin: Annotated[bool, typer.Option("--standin", help="Run GPU cells on the CPU with tiny random models.")] = False,
    save: Annotated[bool, typer.Option("--save", help="Store the outputs in the notebook, cleaned.")] = False,
) -> None:
    """Run notebooks without a browser, each in a fresh kernel; exit code 1 when one fails."""
    if gpu and standin:
        fail("--gpu and --standin exclude each other: real models on the GPU, or stand-ins on the CPU")
    with told():
        from .checkout import find_all
        from .notebooks import execute
        from .running import run_all

        failed = run_all(find_all(names or []), console(), execute, gpu=gpu, standin=standin, save=save)
    raise typer.Exit(bool(failed))


def show() -> None:
    """Show which exercises you have tried and solved."""
    from llmcourse.exercise import all_exercises
    from llmcourse.exercise.progress import Progress
    from llmcourse.start_here import NOTEBOOKS

    from .records import own_table

    ids = [item.id for notebook in NOTEBOOKS if notebook.ready for item in all_exercises(notebook.topic)]
    console().print(own_table(ids, Progress().read()))


def merge(
    files: Annotated[list[Path], typer.Argument(help="Files that learners exported.")],
    csv: Annotated[Path | None, typer.Option(help="Also write learners by exercises here.")] = None,
) -> None:
    """Show many learners together: who has solved what, and where a class is stuck."""
    from llmcourse.exercise.progress import Progress

    from .records import class_tables, write_csv

    with told():
        rows = Progress.merge(files)
        for table in class_tables(rows):
            console().print(table)
        if csv:
            write_csv(rows, csv)


def export(
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    learner: Annotated[str | None, typer.Option(help="Your name in it; default: your user name.")] = None,
) -> None:
    """Write your progress to a file, for another machine or for your instructor."""
    from llmcourse.exercise.progress import Progress

    with told():
        print(f"wrote {Progress().export(file, learner)}")


def import_(file: Annotated[Path, typer.Argument(help="A file that `export` wrote.")]) -> None:
    """Add exported progress to yours; the better result of each exercise stays."""
    from llmcourse.exercise.progress import Progress

    with told():
        print(f"read {Progress().import_(file)} exercises from {file}")


def claims(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print the ledger: every claim of the course, what the committed notebooks measured, and the verdict."""
    import json

    from llmcourse.claims import ledger

    from .checkout import checkout, notebooks
    from .records import claims_table

    with told():
        rows = ledger(notebooks(checkout() / "notebooks"))
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        console().print(claims_table(rows))


def measure(
    name: Annotated[str | None, typer.Argument(help="Which measurement; without it, the list.")] = None,
    of: Annotated[str | None, typer.Argument(help="What to measure, where there is a choice, e.g. skills tiny-bert.")] = None,
) -> None:
    """Compute a whole measured grid that a notebook reruns only in part."""
    from .checkout import nearest

    if name is None:
        for known, function in sorted(MEASUREMENTS.items()):
            print(f"{known:20} {(function.__doc__ or '').partition(chr(10))[0]}")
        print("" if MEASUREMENTS else "no measurement yet")
    elif name not in MEASUREMENTS:
        fail(f"no measurement {name!r}{nearest(name, MEASUREMENTS)}")
    elif of is not None and not inspect.signature(MEASUREMENTS[name]).parameters:
        fail(f"the measurement {name!r} takes no choice; leave out {of!r}")
    else:
        with told():
            MEASUREMENTS[name](*([] if of is None else [of]))


def pin() -> None:
    """Ask the hub for the present revision of every model and data set the course names, and record them."""
    from llmcourse import zoo

    with told():
        pins = zoo.pin()
    for kind, names in pins.items():
        print(f"recorded {len(names)} {kind}")


def address(check: Annotated[bool, typer.Option("--check", help="Change nothing; exit code 1 on differences.")] = False) -> None:
    """Write the address and version in pyproject.toml into badges, install cells and the README."""
    from .address import differences, rewrite
    from .checkout import checkout

    with told():
        root = checkout()
        changed = list(differences(root)) if check else rewrite(root)
    for path in changed:
        print(f"{'differs' if check else 'rewrote'}: {path.relative_to(root).as_posix()}")
    if check and changed:
        fail("run `llmcourse address` and commit what it changes")


# ----------------------------------------------------------------------------------------------------------------- helpers


def console() -> Console:
    """Return the console commands print to; made anew, so that it follows a redirected stdout."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def fail(message: str) -> Any:
    """Print an error message and leave with exit code 1."""
    print(f"llmcourse: {message}", file=sys.stderr)
    raise typer.Exit(1)


@contextmanager
def told() -> Iterator[None]:
    """Turn the errors a learner can cause, or cure, into their message alone."""
    try:
        yield
    except ModuleNotFoundError as error:
        fail(f'{error.name} is not installed; pip install "llmcourse[lab]" brings what this command needs')
    except (LookupError, ValueError, OSError) as error:
        fail(str(error))
