"""Ranks that do what `test_sharding_launch.py` asks: end well, crash, hang, eat memory, kill themselves or their launcher."""

import argparse
import os
import signal
import threading

import torch
import torch.distributed as dist

from llmcourse.sharding.scripts import rank


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--do", default="sum")
    parser.add_argument("--who", type=int, default=1)
    parser.add_argument("--launcher", type=int)
    options = parser.parse_args()
    with rank.joined() as here:
        for done in range(1, 4):
            print(f"step {done} on {here.rank}")
            here.step(done, 3, loss=1 / done)
            total = torch.tensor([float(here.rank + 1)])
            dist.all_reduce(total)
        if here.rank == options.who:
            DEEDS[options.do](options)
        dist.all_reduce(total)
        here.result({"rank": here.rank, "sum": total.item(), "world": here.world})


def crash(options: argparse.Namespace) -> None:
    raise ValueError("the deliberate mistake")


def hang(options: argparse.Namespace) -> None:
    threading.Event().wait()


def spin(options: argparse.Namespace) -> None:
    while True:
        pass


def eat(options: argparse.Namespace) -> None:
    hoard = []
    while True:
        hoard.append(torch.ones(4_000_000))


def allocate(options: argparse.Namespace) -> None:
    torch.empty(2**60)


def die(options: argparse.Namespace) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt(options: argparse.Namespace) -> None:
    os.kill(options.launcher, signal.SIGINT)
    hang(options)


def interrupt_twice(options: argparse.Namespace) -> None:
    os.kill(options.launcher, signal.SIGINT)
    interrupt(options)


def kill_the_launcher(options: argparse.Namespace) -> None:
    os.kill(options.launcher, signal.SIGKILL)
    hang(options)


DEEDS = {
    "sum": lambda options: None, "crash": crash, "hang": hang, "spin": spin, "eat": eat, "allocate": allocate, "die": die,
    "interrupt": interrupt, "interrupt-twice": interrupt_twice, "kill-the-launcher": kill_the_launcher,
}  # fmt: skip

if __name__ == "__main__":
    main()
