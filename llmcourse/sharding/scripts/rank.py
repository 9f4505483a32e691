"""A rank's own side of a run: join the others, tell how far it is, hand in a result, leave a trace when it fails.

    with rank.joined() as here:                  process group up: NCCL where every rank has a GPU, else gloo
        for step in range(20):
            …
            here.step(step + 1, 20, loss=loss)   ─► rank-0.jsonl ─► the progress bar of `launch.run`
        here.result({"losses": losses})          ─► what `launch.run` returns

Does:     one JSON line an event, in the folder that `launch` names in LLMCOURSE_RUN; without one (torchrun by hand, a cluster)
          rank 0 prints them instead. Writes its stack on SIGUSR1, even from within C; ends when the process that started the run
          is gone. `alone`: a group of one, in a process that nobody launched.
Leaves out: any knowledge of models; Windows (use WSL).
Source:   own.
"""

import contextlib
import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["FOLDER", "Rank", "alone", "end_with_the_launcher", "joined"]

FOLDER = "LLMCOURSE_RUN"  # the environment variable by which `launch` names its folder


@dataclass(frozen=True, kw_only=True)
class Rank:
    """This process among the others."""

    rank: int
    world: int
    device: torch.device
    events: Path | None = None

    def step(self, done: int, total: int, **values: float) -> None:
        """Tell that `done` of `total` steps are behind; a rank that is silent for too long counts as hung."""
        self.tell("step", done=done, total=total, **values)

    def result(self, value: Any) -> None:
        """Hand in what this rank has found: anything JSON can hold. The last one counts."""
        self.tell("result", value=value)

    def tell(self, kind: str, **values: Any) -> None:
        """Write one event, at once and whole."""
        line = json.dumps({"kind": kind, "time": time.time(), **values})
        if self.events is not None:
            with self.events.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        elif self.rank == 0 and kind != "start":
            print(line, flush=True)


@contextlib.contextmanager
def joined(backend: str | None = None, timeout: float = 1800) -> Iterator[Rank]:
    """The process group, and this rank in it; within `torchrun`, whose environment says who is who. `timeout`: of a collective.

    Raises: RuntimeError outside torchrun.
    """
    here = _here()
    here.tell("start", pid=os.getpid(), thread=threading.main_thread().ident, world=here.world)
    with _failures_told(here):
        name = backend or ("nccl" if here.device.type == "cuda" else "gloo")
        dist.init_process_group(name, timeout=timedelta(seconds=timeout))
        yield here
        dist.barrier()  # so that nobody leaves while another still reads from it
        dist.destroy_process_group()
    here.tell("end")


@contextlib.contextmanager
def alone() -> Iterator[Rank]:
    """This process as the only rank, on the CPU, without torchrun: the yardstick for all others. Its events go nowhere."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield Rank(rank=0, world=1, device=torch.device("cpu"), events=Path(os.devnull))
    finally:
        dist.destroy_process_group()


def _here() -> Rank:
    if "LOCAL_RANK" not in os.environ:
        raise RuntimeError("this script needs torchrun around it: torchrun --standalone --nproc-per-node 2 SCRIPT")
    number, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    folder = os.environ.get(FOLDER)
    faulthandler.enable()  # a crash in C leaves a stack in stderr
    if folder:
        _answer_signals(Path(folder, f"stack-{number}.txt"))
    end_with_the_launcher()
    events = Path(folder, f"rank-{number}.jsonl") if folder else None
    return Rank(rank=number, world=world, device=_device(local), events=events)


def _device(local: int) -> torch.device:
    """A GPU of its own where there are enough for every rank of this machine, else the CPU with one thread."""
    if torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]):
        torch.cuda.set_device(local)
        return torch.device("cuda", local)
    torch.set_num_threads(1)  # two busy threads on one core are many times slower than one
    return torch.device("cpu")


def _answer_signals(file: Path) -> None:
    """SIGUSR1 writes every thread's stack to the file, from C: it works within a collective that waits for ever."""
    faulthandler.register(signal.SIGUSR1, file=file.open("w"), all_threads=True)


def end_with_the_launcher() -> None:
    """Let this process not outlive the one that launched it from a notebook, however that one ends; by hand nothing happens."""
    if FOLDER in os.environ:
        threading.Thread(target=_end_with_stdin, daemon=True).start()


def _end_with_stdin() -> None:
    """Wait for the end of stdin, a pipe that the launcher holds open and torchrun hands down: it closes when that one dies."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def _failures_told(here: Rank) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if not isinstance(error, SystemExit) or error.code:
            trace = _own_frames(error)
            here.tell("error", name=type(error).__name__, message=str(error), traceback=trace)
            print(trace, file=sys.stderr, flush=True)
            os._exit(1)  # at once: an ordinary end would wait for messages that never come
        raise


def _own_frames(error: BaseException) -> str:
    """The traceback, without the frames of this file."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    shown = ["Traceback (most recent call last):\n", *traceback.format_list(frames), *traceback.format_exception_only(error)]
    return "".join(shown)
