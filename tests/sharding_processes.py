"""Ranks for the tests: one process loads everything, then forks the ranks of each world size in turn, so that torch loads once.

    test ── launch("tests.sharding_data_ranks", folder, [4, 2, 1]) ──► script ── run(main) ──► 4 ranks, then 2, then 1
    test ◄── ranks-4-0.json, ranks-4-1.json, …, one file a rank with what its `main(folder)` returned ──┘

Does:     everything through files in one folder, the ranks' first meeting too, so that no port can be taken; a rank that fails
          ends the others with its traceback; one that does not end says where it is; no process outlives the test.
Leaves out: torchrun, which test_sharding_launch.py is about.
"""

import ctypes
import faulthandler
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATIENCE = 900  # seconds, on a machine that has other things to do
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
LOOPBACK = {"linux": "lo", "darwin": "lo0"}


# --- on the side of the tests ------------------------------------------------------------------------------------------


def launch(module: str, folder: Path, sizes: Iterable[int]) -> None:
    """Run a rank script on each number of ranks, one after the other. Its output is shown if it fails."""
    interface = {"GLOO_SOCKET_IFNAME": LOOPBACK[sys.platform]} if sys.platform in LOOPBACK else {}
    command = [sys.executable, "-m", module, str(folder), *map(str, sizes)]
    with (folder / "log").open("w+") as log:
        options = {"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"} | interface, "start_new_session": True}
        process = subprocess.Popen(command, stdout=log, stderr=log, **options)
        try:
            code = process.wait(timeout=PATIENCE)
        finally:
            _end(process)
        log.seek(0)
        assert code == 0, log.read()[-8000:]


def _end(process: subprocess.Popen) -> None:
    """The script and its ranks, which are a process group of their own."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
        process.wait()


def found_by(folder: Path, n: int) -> list[dict]:
    """What each of n ranks found."""
    return [json.loads((folder / f"ranks-{n}-{rank}.json").read_text(encoding="utf-8")) for rank in range(n)]


# --- on the side of the ranks ------------------------------------------------------------------------------------------


def run(main: Callable[[Path], dict]) -> None:
    """Call `main(folder)` on each rank of each world size; the command line has the folder and the sizes."""
    from torch.multiprocessing import start_processes

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a killed test takes this process with it
    import_module("torch._dynamo")  # optimizers load it at their first step: loaded here, it is loaded once
    folder, sizes = Path(sys.argv[1]), [int(n) for n in sys.argv[2:]]
    for n in sizes:
        start_processes(_rank, (main, n, folder), nprocs=n, start_method="fork" if sys.platform == "linux" else "spawn")


def _rank(rank: int, main: Callable[[Path], dict], n: int, folder: Path) -> None:
    import torch.distributed as dist

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a rank gets when its parent dies, and must not wait to obey
    faulthandler.dump_traceback_later(PATIENCE - 60)
    meeting = dist.FileStore(str(folder / f"meeting-{n}"), n)
    dist.init_process_group("gloo", store=meeting, rank=rank, world_size=n)
    found = main(folder)
    (folder / f"ranks-{n}-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()
