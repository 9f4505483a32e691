"""Launching ranks: what comes back, how failures are told, and that no process is left, whatever ends the run."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from llmcourse.sharding import launch

SCRIPT = Path(__file__).parent / "sharding_launch_ranks.py"
PATIENCE = 120.0  # so long that no busy machine looks hung; only the test of a hang has less


def left_behind(launcher: int) -> list[psutil.Process]:
    """Processes of our script that this launcher has started."""
    found = []
    for each in psutil.process_iter():
        try:
            words = each.cmdline()
        except psutil.Error:
            continue
        if str(SCRIPT) in words and str(launcher) in words and each.status() != psutil.STATUS_ZOMBIE:
            found.append(each)
    return found


def start(do: str, **options):
    return launch.run(SCRIPT, **({"ranks": 2, "patience": PATIENCE} | options), do=do, launcher=os.getpid())


def failed(do: str, **options) -> launch.RankFailed:
    with pytest.raises(launch.RankFailed) as caught:
        start(do, quiet=True, **options)
    assert left_behind(os.getpid()) == []
    return caught.value


# ---- runs -------------------------------------------------------------------------------------------------------------


def test_results_and_lines_of_every_rank_come_back_even_if_the_usual_port_is_taken(capsys):
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", 29500))
            taken.listen()
        except OSError:
            pass  # somebody else has it: taken all the same
        run = start("sum")
    assert run.results == [{"rank": 0, "sum": 6.0, "world": 2}, {"rank": 1, "sum": 6.0, "world": 2}]
    assert {(rank, f"step {n} on {rank}") for rank in (0, 1) for n in (1, 2, 3)} <= set(run.lines)
    shown = capsys.readouterr().out
    assert "$ torchrun --standalone --nproc-per-node 2 sharding_launch_ranks.py" in shown
    assert "[rank 1] step 2 on 1" in shown and "3/3" in shown
    assert left_behind(os.getpid()) == []


def test_a_rank_that_raises_is_named_with_its_traceback_and_not_those_that_lost_it():
    failure = failed("crash", who=1)
    assert (failure.reason, failure.rank) == ("crashed", 1)
    assert "ValueError: the deliberate mistake" in str(failure)
    assert f'File "{SCRIPT}"' in failure.traceback and "in crash" in failure.traceback
    assert "closed by peer" not in failure.traceback


def test_a_rank_that_hangs_is_told_from_those_that_wait_for_it_and_its_stack_is_shown():
    failure = failed("hang", who=0, patience=8.0)
    assert (failure.reason, failure.rank) == ("hung", 0)
    assert "rank 1 waits for it" in failure.title
    assert "in hang" in failure.traceback and "threading.Event().wait()" in failure.traceback


def test_a_rank_that_takes_too_much_memory_is_ended_with_its_stack():
    failure = failed("eat", gigabytes=1.0)
    assert (failure.reason, failure.rank) == ("memory", 1)
    assert "in eat" in failure.traceback


def test_a_killed_rank_is_named_with_its_signal():
    failure = failed("die")
    assert (failure.reason, failure.rank) == ("killed", 1)
    assert "SIGKILL" in failure.title and "memory" in failure.title


def test_ctrl_c_leaves_no_process_even_when_pressed_twice():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        start("interrupt-twice", quiet=True)
    assert left_behind(os.getpid()) == []
    assert signal.getsignal(signal.SIGINT) is before


def test_ranks_end_when_their_launcher_is_killed(tmp_path):
    code = (
        "import os, sys; from llmcourse.sharding import launch; "
        "launch.run(sys.argv[1], patience=120, quiet=True, do='kill-the-launcher', launcher=os.getpid())"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    launcher = subprocess.Popen([sys.executable, "-c", code, str(SCRIPT)], env=environment)
    assert launcher.wait(timeout=PATIENCE) == -signal.SIGKILL
    _, alive = psutil.wait_procs(left_behind(launcher.pid), timeout=60)
    for each in alive:
        each.kill()
    assert not alive


# ---- without processes ------------------------------------------------------------------------------------------------


def watch(folder: Path, events: list[dict], report: str = "") -> launch._Watch:
    """What is known after the ranks have written these last events, and torchrun this report."""
    for rank, event in enumerate(events):
        lines = [{"kind": "start", "pid": 0, "thread": 0}] + ([event] if event else [])
        (folder / f"rank-{rank}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "torchrun.log").write_text(report)
    found = launch._Watch(folder=folder, ranks=[launch._Seen(folder, n) for n in range(len(events))], screen=launch._Screen(True))
    found._read(last=True)
    return found


def error(time: float, name: str, message: str) -> dict:
    return {"kind": "error", "time": time, "name": name, "message": message, "traceback": f"{name}: {message}"}


LOST = "Connection closed by peer [127.0.0.1]:1234"


def test_the_first_error_of_its_own_is_the_cause_however_early_others_lost_the_connection(tmp_path):
    events = [error(1.0, "RuntimeError", LOST), error(3.0, "KeyError", "late"), error(2.0, "ValueError", "early")]
    failure = watch(tmp_path, events)._crashed()
    assert (failure.reason, failure.rank) == ("crashed", 2)


def test_a_silent_death_is_the_cause_when_others_only_lost_the_connection(tmp_path):
    report = (
        "  rank      : 0 (local_rank: 0)\n  exitcode  : 1 (pid: 7)\n  rank      : 1 (local_rank: 1)\n  exitcode  : -11 (pid: 8)\n"
    )
    failure = watch(tmp_path, [error(1.0, "RuntimeError", LOST), {}], report)._crashed()
    assert (failure.reason, failure.rank) == ("killed", 1)
    assert "SIGSEGV" in failure.title and "memory" not in failure.title


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried", "DefaultCPUAllocator: can't allocate memory: you tried"])
def test_an_error_about_memory_counts_as_one(tmp_path, message):
    assert watch(tmp_path, [error(1.0, "RuntimeError", message)])._crashed().reason == "memory"


def test_a_torchrun_that_starts_no_rank_shows_its_own_words(tmp_path):
    failure = watch(tmp_path, [{}, {}], "error: unrecognized arguments")._crashed()
    assert (failure.reason, failure.rank) == ("start", None)
    assert "unrecognized arguments" in failure.traceback


def test_half_a_line_waits_for_its_rest(tmp_path):
    file, tail = tmp_path / "rank-0.jsonl", launch._Tail(tmp_path, "rank-*.jsonl")
    assert tail.read() == []
    file.write_text("one\ntw")
    assert tail.read() == ["one"]
    with file.open("a") as more:
        more.write("o\nthree")
    assert tail.read() == ["two"]
    assert tail.read(last=True) == ["three"]


def test_options_become_words_of_a_command_line():
    options = {"strategy": ["ddp", "zero3"], "kv_heads": 2, "tied": True, "mixed": False, "clip": None}
    assert launch.arguments(options) == ["--strategy", "ddp", "zero3", "--kv-heads", "2", "--tied"]


def test_variables_of_another_run_do_not_reach_the_ranks(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "other")
    found = launch._environment(tmp_path, {"OMP_NUM_THREADS": "2"})
    assert "RANK" not in found and "TORCHELASTIC_RUN_ID" not in found
    assert found["OMP_NUM_THREADS"] == "2" and found[launch.FOLDER] == str(tmp_path)


def test_an_unknown_script_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no script .trian.*fsdp, ring, train, with_accelerate, with_deepspeed"):
        launch.run("trian")


def test_no_rank_at_all_is_refused():
    with pytest.raises(ValueError, match="ranks=0"):
        launch.run("train", ranks=0)


def test_a_failure_shows_as_a_card(capsys):
    launch.RankFailed("crashed", 1, "rank 1 of 2 crashed: ValueError: no", "Traceback …\nValueError: no").show()
    assert "✗ rank 1 of 2 crashed" in capsys.readouterr().out


def test_a_card_shows_no_folders_of_this_machine(capsys):
    own, theirs = launch.SCRIPTS / "train.py", "/somewhere/site-packages/torch/nn/modules/module.py"
    trace = f'  File "{own}", line 3, in <module>\n  File "{theirs}", line 1, in _call_impl'
    launch.RankFailed("crashed", 0, "rank 0 of 1 crashed", trace).show()
    shown = capsys.readouterr().out
    assert 'File "llmcourse/sharding/scripts/train.py", line 3' in shown and 'File "module.py", line 1' in shown


def test_a_command_names_temporary_folders_as_every_machine_does(tmp_path, monkeypatch):
    monkeypatch.setattr(launch.tempfile, "gettempdir", lambda: str(tmp_path))
    typed = launch._typed(launch.SCRIPTS / "train.py", 2, ["--save", str(tmp_path / "x")])
    assert typed == "torchrun --standalone --nproc-per-node 2 llmcourse/sharding/scripts/train.py --save $TMPDIR/x"


def test_launching_needs_no_torch():
    code = "import sys; from llmcourse.sharding import launch; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
