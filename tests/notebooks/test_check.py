"""The whole check, as CI runs it: good notebooks pass, and each thing that must not pass fails where it stands.

All broken notebooks run in one go, so that the kernels' starts are paid once.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

CHECK = Path(__file__).with_name("check.py")
CLAIM = {"application/vnd.llmcourse.claim+json": {"id": "lora-params", "measured": 1.0}, "text/plain": "claim"}
SWALLOW = "import time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    pass"

BROKEN = {
    "exception": ("1 / 0", "ZeroDivisionError"),
    "gpu_exception": ("%%gpu minutes=1 vram=1 download=0\n1 / 0", "ZeroDivisionError"),
    "pip": ("%pip install --no-index llmcourse-no-such-package", "CalledProcessError"),
    "command": ("!exit 3", "CalledProcessError"),
    "captured_command": ("lines = !exit 3", "CalledProcessError"),
    "timeout": ("import time\ntime.sleep(60)", "Timeout"),
    "swallowed_timeout": (SWALLOW, "Timeout"),
    "dead": ("import os\nos._exit(1)", "kernel died"),
    "network": (
        "import urllib.request as u\ntry:\n    u.urlopen('https://example.org')\nexcept OSError:\n    pass",
        "NetworkError",
    ),
    "command_network": (
        "!{__import__('sys').executable} -c \"import urllib.request as u; u.urlopen('http://192.0.2.1', timeout=2)\"",
        "Called",
    ),
    "other_output": ("print(41)", "outputs differ"),
}


@pytest.fixture(scope="module")
def failures(good: Path, broken: Callable, add: Callable, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """The message of every item that failed, by notebook and item name; {} for one that passed."""
    folder = tmp_path_factory.mktemp("check")
    broken(folder, lambda nb: None, name="good")
    for name, (source, _) in BROKEN.items():
        checked = {"outputs": [{"output_type": "stream", "name": "stdout", "text": "42\n"}]} if name == "other_output" else {}
        broken(folder, add(source, *(["nbval-check-output"] if checked else []), **checked), name=name)
    broken(folder, add("pass", outputs=[{"output_type": "display_data", "data": CLAIM, "metadata": {}}]), name="claim")
    broken(folder, add("x = 1"), name="stale", fresh=False)
    report = folder / "report.xml"
    options = ["--nbval-cell-timeout=6", f"--junitxml={report}", "-p", "no:cacheprovider"]
    subprocess.run([sys.executable, str(CHECK), *options, str(folder)], capture_output=True, timeout=240)
    return _failures(report)


def _failures(report: Path) -> dict[tuple[str, str], str]:
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        notebook = case.get("classname", "").split(".")[-2 if case.get("classname", "").endswith("ipynb") else -1]
        problem = case.find("failure")
        problem = case.find("error") if problem is None else problem
        found[notebook, case.get("name", "")] = "" if problem is None else (problem.get("message", "") + (problem.text or ""))
    return found


def test_every_item_of_a_good_notebook_passes(failures: dict[tuple[str, str], str]):
    items = {item: message for (notebook, item), message in failures.items() if notebook == "good"}
    assert {"clean", "claims", "budget"} < set(items)
    assert not any(items.values()), items


@pytest.mark.parametrize("name", BROKEN)
def test_the_broken_cell_is_the_one_that_fails(name: str, failures: dict[tuple[str, str], str]):
    failed = {item: message for (notebook, item), message in failures.items() if notebook == name and message}
    last = max((item for notebook, item in failures if notebook == name), key=lambda item: (item.startswith("Cell"), item))
    assert BROKEN[name][1] in failed.pop(last)
    assert set(failed) <= {"clean"}, failed


def test_a_claim_that_no_longer_comes_out_fails(failures: dict[tuple[str, str], str]):
    assert "lora-params" in failures["claim", "claims"]


def test_an_unclean_notebook_fails(failures: dict[tuple[str, str], str]):
    assert "stale" in failures["stale", "clean"]


def test_the_check_leaves_the_network_where_the_system_lets_it():
    script = "import check, socket; check.leave_the_network(); print([name for _, name in socket.if_nameindex()])"
    done = subprocess.run([sys.executable, "-c", script], cwd=CHECK.parent, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this system does not let a process leave the network: {done.stderr.splitlines()[-1]}")
    assert done.stdout.strip() == "['lo']"
