"""The launch: `torchrun` on a script file, watched from a notebook until it ends, well or badly.

    run("train", ranks=4) ─► torchrun --standalone --nproc-per-node 4 scripts/train.py
                                ├─► rank 0 ─► stdout.log, stderr.log, rank-0.jsonl ─┐
                                ├─► …                                               ├─► [rank 0] lines · bar · results
                                └─► rank 3 ─► stdout.log, stderr.log, rank-3.jsonl ─┘
    a rank raises, is killed, takes too much memory, or is silent for too long ─► all end, RankFailed shows that rank's traceback

Does:     lines as they come, a progress bar, one result a rank; finds out which rank failed first and which ones only lost it;
          the stack of a rank that hangs, by signal; ports never collide (the rendezvous takes a free one and keeps it); whatever
          ends the call, Ctrl-C included, no process is left: torchrun is told to stop, then everything that carries this run's
          mark is killed. Even if the kernel itself is killed, ranks notice the closed pipe (see `scripts/rank.py`).
Leaves out: several machines (start torchrun on each by hand), restarts of failed ranks, Windows (use WSL). Scripts that do not
          call `rank.joined` run too, but their hangs show no stack.
Source:   own; torchrun is `torch.distributed.run`.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["SCRIPTS", "RankFailed", "Run", "arguments", "run"]

SCRIPTS = Path(__file__).parent / "scripts"
FOLDER = "LLMCOURSE_RUN"  # as in scripts/rank.py, which this process need not import: it would load torch
POLL = 0.05  # seconds between two looks
STARTUP = 120.0  # seconds that ranks get at least until they join: a busy machine imports torch slowly
GRACE = 5.0  # seconds that torchrun gets to end by itself

# What a rank says when another one is gone: a consequence, not the cause.
LOST = re.compile(
    r"closed by peer|reset by peer|broken pipe|connection refused|connection was likely closed|remote process", re.I
)
PREFIX = re.compile(r"^\[rank\d+\]: ")  # torch marks the lines of a traceback; so do we
MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory|^MemoryError", re.I | re.M)


class RankFailed(RuntimeError):
    """A run that ended badly: which rank, why, and that rank's traceback.

    reason: crashed, memory (it ran out, or took more than its share), killed (by a signal), hung, or start (torchrun failed).
    """

    def __init__(self, reason: str, rank: int | None, title: str, traceback: str = "", lines: tuple[tuple[int, str], ...] = ()):
        super().__init__(f"{title}\n\n{traceback}".strip())
        self.reason, self.rank, self.title, self.traceback, self.lines = reason, rank, title, traceback, lines

    def show(self) -> None:
        """A card in the notebook instead of an exception; files without this machine's folders."""
        from .. import show

        show.card("bad", self.title, re.sub(r'(?<=File ")[^"]+', lambda file: _without_folders(file[0]), self.traceback))


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run leaves behind: a result a rank, every line with its rank, seconds, and the command to type in a terminal."""

    command: str
    results: list[Any]
    lines: tuple[tuple[int, str], ...]
    seconds: float


def run(
    script: str | Path,
    *,
    ranks: int = 2,
    patience: float = 60.0,
    gigabytes: float | None = None,
    quiet: bool = False,
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> Run:
    """Start `script` on so many ranks of this machine, show what they say, and return their results.

    Args:
        script: the name of one in `scripts/`, or a path.
        patience: seconds for which a rank may give no sign (a line, or `step`) before it counts as hung.
        gigabytes: memory of each rank (10⁹ bytes); by default nine tenths of what is free now, shared among the ranks.
        quiet: print nothing.
        environment: more variables for the ranks.
        options: for the script, `strategy="zero3"` as `--strategy zero3`, `tied=True` as `--tied`.

    Raises:
        RankFailed: when a rank fails or hangs, once all of them are gone.
        ValueError: for a script that does not exist, or less than one rank.
    """
    path = _script(script)
    if ranks < 1:
        raise ValueError(f"ranks={ranks} are too few; give at least 1")
    if os.name == "nt":
        raise RuntimeError("several ranks need Linux or macOS; on Windows run the course in WSL")
    rest = arguments(options)
    command, began = _typed(path, ranks, rest), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="llmcourse-run-", ignore_cleanup_errors=True) as folder, _Screen(quiet) as screen:
        screen.line(f"$ {command}")
        watch = _Watch(folder=Path(folder), ranks=[_Seen(Path(folder), n) for n in range(ranks)], screen=screen)
        limit = 1e9 * gigabytes if gigabytes else _share(ranks)
        with _started(path, ranks, rest, watch.folder, environment or {}) as process:
            watch.until_the_end(process, patience, limit)
        lines = tuple(watch.lines)
    return Run(command=command, results=[seen.result for seen in watch.ranks], lines=lines, seconds=time.monotonic() - began)


def arguments(options: Mapping[str, Any]) -> list[str]:
    """Keywords as a command line has them: `_` as `-`, True as a bare flag, False and None left out, lists as several words."""
    words = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        several = value if isinstance(value, list | tuple) else [] if value is True else [value]
        words += [f"--{name.replace('_', '-')}", *map(str, several)]
    return words


def _script(script: str | Path) -> Path:
    known = sorted(path.stem for path in SCRIPTS.glob("*.py") if path.stem not in ("__init__", "rank", "task"))
    path = SCRIPTS / f"{script}.py" if str(script) in known else Path(script)
    if not path.is_file():
        raise ValueError(f"there is no script {str(script)!r}; give a path, or one of {', '.join(known)}")
    return path.resolve()


def _typed(path: Path, ranks: int, rest: list[str]) -> str:
    """The command as one types it, in the checkout; temporary folders by the name they have on every machine."""
    own = path.is_relative_to(SCRIPTS)
    name = path.relative_to(SCRIPTS.parents[2]).as_posix() if own else path.name
    command = shlex.join(["torchrun", "--standalone", "--nproc-per-node", str(ranks), name, *rest])
    return command.replace(tempfile.gettempdir(), "$TMPDIR")


def _without_folders(file: str) -> str:
    """A file of the course from `llmcourse/` on, of any other its name."""
    path = Path(file)
    return path.relative_to(SCRIPTS.parents[2]).as_posix() if path.is_relative_to(SCRIPTS.parents[1]) else path.name


def _share(ranks: int) -> float:
    """Bytes that each rank may take, so that the machine never starts to swap."""
    import psutil

    return 0.9 * psutil.virtual_memory().available / ranks


# ---- the processes ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _started(path: Path, ranks: int, rest: list[str], folder: Path, more: Mapping[str, str]) -> Iterator[subprocess.Popen]:
    """torchrun at work; after this block neither it nor any rank is."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    logs = ["--redirects=3", f"--log-dir={folder / 'logs'}"]
    process = None
    with _Interrupts() as interrupts, (folder / "torchrun.log").open("w") as log:
        # stdin is the lifeline; a session of its own keeps a Ctrl-C in the terminal from it: we decide who stops, and when.
        options = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log, "start_new_session": True}
        try:
            try:
                process = subprocess.Popen([*torchrun, *logs, str(path), *rest], env=_environment(folder, more), **options)
                yield process
            finally:
                interrupts.held = True
        finally:
            _stop(process, folder)


def _environment(folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    """This process's variables, less those of a run around it or of the notebook; one thread a rank; the loopback device."""
    ours = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "MPLBACKEND")
    kept = {name: value for name, value in os.environ.items() if name not in ours and not name.startswith("TORCHELASTIC_")}
    gloo = "lo0" if sys.platform == "darwin" else "lo"
    paths = os.pathsep.join(filter(None, (str(SCRIPTS.parents[2]), kept.get("PYTHONPATH"))))
    fixed = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": paths, FOLDER: str(folder)}
    return {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": gloo, **kept, **more, **fixed}


def _stop(process: subprocess.Popen | None, folder: Path) -> None:
    """Ask torchrun to end its ranks and itself; then kill all that is left of the run."""
    if process is not None:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        process.stdin.close()
    import psutil

    left = list(_marked(folder))
    for each in left:
        with contextlib.suppress(psutil.Error):
            each.kill()
    psutil.wait_procs(left, timeout=GRACE)
    if process is not None:
        process.wait()


def _marked(folder: Path) -> Iterator[Any]:
    """Every process that has this run's folder in its environment, whoever its parent is by now."""
    import psutil

    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if each.pid != os.getpid() and each.environ().get(FOLDER) == str(folder) and each.status() != psutil.STATUS_ZOMBIE:
                yield each


class _Interrupts:
    """Ctrl-C ends the watch, once. While processes are being stopped it waits: an impatient second one must leave none behind."""

    def __init__(self) -> None:
        self.held, self.noted, self.before = False, False, None

    def __enter__(self) -> "_Interrupts":
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGINT, self._pressed)
        return self

    def _pressed(self, number: int, frame: Any) -> None:
        if self.held:
            self.noted = True
        else:
            self.held = True
            raise KeyboardInterrupt

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
        if self.noted and kind is None:
            raise KeyboardInterrupt


# ---- what the ranks say -----------------------------------------------------------------------------------------------


class _Tail:
    """The new whole lines of a file that another process writes; `pattern` because torchrun chooses part of the path."""

    def __init__(self, folder: Path, pattern: str) -> None:
        self.folder, self.pattern, self.file, self.rest = folder, pattern, None, ""

    def read(self, last: bool = False) -> list[str]:
        if self.file is None:
            found = next(self.folder.glob(self.pattern), None)
            if found is None:
                return []
            self.file = found.open(encoding="utf-8", errors="replace")
        *lines, self.rest = (self.rest + self.file.read()).split("\n")
        if last and self.rest:
            lines, self.rest = [*lines, self.rest], ""
        if last:
            self.file.close()
            self.file = None
            self.pattern = ""
        return lines


@dataclass
class _Seen:
    """What is known of one rank."""

    folder: Path
    rank: int
    start: dict[str, Any] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=dict)
    result: Any = None
    ended: bool = False
    complaints: list[str] = field(default_factory=list)  # the lines of its stderr
    last: float = field(default_factory=time.monotonic)  # when it gave a sign

    def __post_init__(self) -> None:
        self.events = _Tail(self.folder, f"rank-{self.rank}.jsonl")
        self.out, self.err = (_Tail(self.folder, f"logs/*/attempt_0/{self.rank}/std{name}.log") for name in ("out", "err"))

    def read(self, last: bool = False) -> list[str]:
        """Take in all that is new, and return its lines."""
        events, complaints = self.events.read(last), self.err.read(last)
        for event in map(json.loads, events):
            self._note(event)
        complaints = [PREFIX.sub("", line) for line in complaints]
        self.complaints += complaints
        lines = self.out.read(last) + complaints
        if events or lines:
            self.last = time.monotonic()
        return lines

    def _note(self, event: dict[str, Any]) -> None:
        kind = event.pop("kind")
        if kind == "result":
            self.result = event["value"]
        elif kind == "end":
            self.ended = True
        elif kind in ("start", "step", "error"):
            setattr(self, kind, event)

    @property
    def lost(self) -> bool:
        """Whether its error is only that another rank is gone."""
        return bool(LOST.search(self.error.get("message", "")))

    def memory(self) -> int:
        import psutil

        with contextlib.suppress(psutil.Error):
            return psutil.Process(self.start["pid"]).memory_info().rss if self.start else 0
        return 0


@dataclass
class _Watch:
    """The look at all ranks, again and again, until torchrun ends or something is wrong."""

    folder: Path
    ranks: list[_Seen]
    screen: "_Screen"
    lines: list[tuple[int, str]] = field(default_factory=list)

    def until_the_end(self, process: subprocess.Popen, patience: float, limit: float) -> None:
        """Return when all ranks have ended well.

        Raises: RankFailed.
        """
        since = None
        while process.poll() is None:
            self._read()
            self._check_memory(limit)
            self._check_silence(patience)
            if since is None and any(seen.error for seen in self.ranks):
                since = time.monotonic()  # torchrun sees it too, and ends; if not, we do
            if since is not None and time.monotonic() - since > GRACE:
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL)
        self._read(last=True)
        if process.poll() != 0:
            raise self._crashed()

    def _read(self, last: bool = False) -> None:
        fresh = [(seen.rank, line) for seen in self.ranks for line in seen.read(last)]
        self.lines += fresh
        if fresh:
            self.screen.line("\n".join(f"[rank {rank}] {line}" for rank, line in fresh))
        steps = [seen.step for seen in self.ranks]
        if all(steps):
            self.screen.progress(min(steps, key=lambda step: step["done"]))

    def _failed(self, reason: str, seen: _Seen | None, why: str, trace: str = "") -> RankFailed:
        who = "torchrun" if seen is None else f"rank {seen.rank} of {len(self.ranks)}"
        return RankFailed(reason, seen and seen.rank, f"{who} {why}", trace, tuple(self.lines))

    def _check_memory(self, limit: float) -> None:
        for seen in self.ranks:
            if (taken := seen.memory()) > limit:
                why = f"took {taken / 1e9:.2f} GB of memory, more than its {limit / 1e9:.2f} GB; ended before the machine swaps"
                raise self._failed("memory", seen, why, _format(_stack(seen)))

    def _check_silence(self, patience: float) -> None:
        """Ranks that never joined may be of a script that tells nothing: they are silent only if all are."""
        now, latest = time.monotonic(), max(seen.last for seen in self.ranks)
        working = [seen for seen in self.ranks if not seen.ended] or self.ranks
        silent = [s for s in working if now - (s.last if s.start else latest) > (patience if s.start else max(patience, STARTUP))]
        if silent:
            raise self._hung(silent, now - min(seen.last for seen in silent))

    def _hung(self, silent: list[_Seen], seconds: float) -> RankFailed:
        """The rank to blame is the one that does not wait for others; if all do, the one least far."""
        stacks = {seen.rank: _stack(seen) for seen in silent}
        busy = [seen for seen in silent if not _waits(stacks[seen.rank])] or silent
        guilty = min(busy, key=lambda seen: seen.step.get("done", 0))
        others = [str(seen.rank) for seen in silent if _waits(stacks[seen.rank]) and seen is not guilty]
        waiting = f"; rank {', '.join(others)} waits for it" if others else ""
        why = f"hung: no sign of it for {seconds:.0f} s{waiting}"
        return self._failed("hung", guilty, why, _format(stacks[guilty.rank]))

    def _crashed(self) -> RankFailed:
        """The first cause: an error of its own, else a signal, else an exit code, and only then a lost connection."""
        exits = _exit_codes((self.folder / "torchrun.log").read_text(errors="replace"))
        raised = sorted((seen for seen in self.ranks if seen.error), key=lambda seen: (seen.lost, seen.error["time"]))
        if raised and not raised[0].lost:
            return self._raised(raised[0])
        dead = {
            seen.rank: exits[seen.rank]
            for seen in self.ranks
            if not seen.error and exits.get(seen.rank, -signal.SIGTERM) != -signal.SIGTERM
        }
        for rank in sorted(dead, key=lambda rank: dead[rank] > 0):
            return self._died(self.ranks[rank], dead[rank])
        if raised:
            return self._raised(raised[0])
        return self._failed(
            "start", None, "failed before any rank started", (self.folder / "torchrun.log").read_text(errors="replace")
        )

    def _raised(self, seen: _Seen) -> RankFailed:
        name, message = seen.error["name"], seen.error["message"]
        reason = "memory" if MEMORY.search(f"{name}\n{message}") else "crashed"
        return self._failed(reason, seen, f"crashed: {name}: {message.partition(chr(10))[0]}", seen.error["traceback"])

    def _died(self, seen: _Seen, code: int) -> RankFailed:
        trace = "\n".join(seen.complaints)
        if code > 0:
            return self._failed("crashed", seen, f"ended with exit code {code}", trace)
        hint = "; Linux does so when memory runs out" if -code == signal.SIGKILL else ""
        return self._failed("killed", seen, f"was killed by {signal.Signals(-code).name}{hint}", trace)


def _exit_codes(log: str) -> dict[int, int]:
    """Rank → exit code (minus the signal's number), from the report that torchrun writes about those that failed."""
    return {int(rank): int(code) for rank, code in re.findall(r"rank\s*: (\d+) \(local_rank: \d+\)\s*exitcode\s*: (-?\d+)", log)}


# ---- the stack of a rank that hangs -----------------------------------------------------------------------------------


def _stack(seen: _Seen) -> list[traceback.FrameSummary]:
    """Where a rank's main thread is now, outermost call first; empty where it cannot say."""
    file = seen.folder / f"stack-{seen.rank}.txt"
    if not seen.start or not file.exists():
        return []
    with contextlib.suppress(ProcessLookupError):
        os.kill(seen.start["pid"], signal.SIGUSR1)
    frames: list[traceback.FrameSummary] = []
    end = time.monotonic() + 2
    while time.monotonic() < end:
        read, frames = frames, _main_thread(file.read_text(errors="replace"), seen.start["thread"])
        if frames and frames == read:
            return frames
        time.sleep(POLL)
    return frames


def _main_thread(dump: str, thread: int) -> list[traceback.FrameSummary]:
    """The frames of one thread in what faulthandler wrote (innermost first), turned round."""
    frames, mine = [], False
    for line in dump.splitlines():
        if head := re.match(r"(?:Current t|T)hread 0x([0-9a-f]+)", line):
            mine = int(head[1], 16) == thread
        elif mine and (found := re.match(r'\s*File "(.+)", line (\d+) in (.+)', line)):
            frames.append(traceback.FrameSummary(found[1], int(found[2]), found[3]))
    return frames[::-1]


def _format(frames: list[traceback.FrameSummary]) -> str:
    return "".join(["Stack (most recent call last):\n", *traceback.format_list(frames)]) if frames else ""


def _waits(frames: list[traceback.FrameSummary]) -> bool:
    """Whether the innermost frame is a collective's, or waits for one."""
    innermost = frames[-1] if frames else None
    where = Path(innermost.filename).as_posix() if innermost else ""
    return "/torch/distributed/" in where or bool(innermost and ".wait(" in (innermost.line or ""))


# ---- what the learner sees --------------------------------------------------------------------------------------------


class _Screen:
    """Lines above a text progress bar, which is drawn only once the ranks tell how far they are."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.bar = quiet, None

    def __enter__(self) -> "_Screen":
        return self

    def line(self, text: str) -> None:
        if self.quiet:
            return
        if self.bar is None:
            print(text, flush=True)
        else:
            self.bar.write(text, file=self.bar.fp)

    def progress(self, step: dict[str, Any]) -> None:
        """Move the bar to `done` of `total`, with the other values beside it."""
        if self.quiet:
            return
        if self.bar is None:
            self.bar = self._new(step["total"])
        notes = [f"{name} {value:.4g}" for name, value in step.items() if name not in ("done", "total", "time")]
        self.bar.set_postfix_str(" · ".join(notes), refresh=False)
        self.bar.update(step["done"] - self.bar.n)

    def _new(self, total: int) -> Any:
        from tqdm.std import tqdm  # not tqdm.auto: its widget would be stored in the notebook

        from .. import show

        watched = show.is_notebook() or sys.stdout.isatty()
        return tqdm(total=total, unit="step", file=sys.stdout, mininterval=0.2 if watched else 30.0)

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()
