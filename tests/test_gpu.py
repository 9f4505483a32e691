"""`%%gpu` cells: idle, stand-in and real runs, names of their own, errors that fail a run, records that survive."""

import json
import linecache
import sys
import weakref
from types import SimpleNamespace

import nbformat
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from llmcourse import gpu

COSTS = "%%gpu minutes=6 vram=5 download=1.3\n"


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """A shell of its own with `%%gpu` registered; records go to a scratch file; no cell sees a real GPU."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setattr(gpu, "RECORDS", tmp_path / "gpu_runs.json")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "_refused", [])
    before = dict(sys.__dict__)
    shell = InteractiveShell.instance()
    monkeypatch.setattr(shell.display_pub, "publish", lambda data, **_: print(data["text/plain"]))
    gpu.register()
    yield shell
    gpu._space.clear()
    gpu._own.clear()
    InteractiveShell.clear_instance()
    sys.displayhook, sys.excepthook = before["displayhook"], before["excepthook"]


@pytest.fixture
def standin(monkeypatch):
    monkeypatch.setenv("LLMCOURSE_STANDIN", "1")


class FakeCuda:
    """What `gpu` asks of torch.cuda, on a card with `total` GB of which `free` are free."""

    def __init__(self, free=15, total=16):
        self.mem_get_info = lambda: (free * 1e9, total * 1e9)
        self.OutOfMemoryError = torch.cuda.OutOfMemoryError

    is_available = staticmethod(lambda: True)
    is_initialized = staticmethod(lambda: True)
    get_device_name = staticmethod(lambda: "Tesla T4")
    max_memory_allocated = staticmethod(lambda: 4.2e9)
    memory_reserved = memory_allocated = staticmethod(lambda: 0)
    reset_peak_memory_stats = synchronize = empty_cache = staticmethod(lambda: None)


@pytest.fixture
def cuda(monkeypatch):
    """Pretend a T4 is present."""
    monkeypatch.setattr(torch, "cuda", FakeCuda())
    return torch.cuda


def run(shell, cell):
    """Run a cell as a notebook would and return what it raised, if anything."""
    result = shell.run_cell(cell)
    return result.error_before_exec or result.error_in_exec


# the line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("minutes=6 vram=5", "lacks download"),
        ("minutes=6 vram=5 download=1 colour=red", "does not know colour"),
        ("minutes=soon vram=5 download=1", "minutes='soon' is not a number"),
        ("minutes=6 vram=-5 download=1", "vram='-5' is not a number ≥ 0"),
        ("minutes=inf vram=5 download=1", "is not a number"),
        ("minutes", "not a list of name=value"),
        ('minutes="6', "not a list of name=value"),
    ],
)
def test_a_line_that_cannot_be_understood_is_refused_with_what_is_allowed(shell, line, message):
    error = run(shell, f"%%gpu {line}\nx = 1")
    assert isinstance(error, gpu.UsageError)
    assert message in str(error) and "minutes=6 vram=5 download=1.3" in str(error)


def test_a_usage_error_is_shown_without_a_traceback():
    assert gpu.UsageError("why")._render_traceback_() == ["UsageError: why"]


# idle


def test_without_a_gpu_the_cell_does_not_run_but_says_what_it_costs(shell, capsys):
    assert run(shell, COSTS + "# LoRA on Qwen3\nx = 1 / 0") is None
    text = capsys.readouterr().out
    for part in ("LoRA on Qwen3: not run here", "6 min", "5 GB of GPU memory", "1.3 GB of download", "Not measured yet", "T4"):
        assert part in text


def test_the_last_real_run_is_quoted_with_device_date_and_flag(shell, capsys):
    entry = {"minutes": 4.5, "vram": 4.2, "device": "Tesla T4", "date": "2026-01-02", "random_weights": True}
    gpu.RECORDS.write_text(json.dumps({gpu.key("x = 1\n"): entry}), encoding="utf-8")
    run(shell, COSTS + "x = 1")
    text = capsys.readouterr().out
    assert "4.5 min, 4.2 GB on Tesla T4, 2026-01-02 (random weights: time and memory only)" in text


def test_a_syntax_error_surfaces_without_a_gpu(shell):
    assert isinstance(run(shell, COSTS + "x = ("), SyntaxError)


def test_gpu_cells_stay_idle_when_told_so_even_with_cuda(shell, cuda, monkeypatch, capsys):
    monkeypatch.setenv("LLMCOURSE_GPU", "0")
    assert run(shell, COSTS + "1 / 0") is None
    assert "kept idle by LLMCOURSE_GPU=0" in capsys.readouterr().out


# names


def test_a_name_made_in_a_gpu_cell_is_known_to_the_next_gpu_cell_alone(shell, standin):
    assert run(shell, COSTS + "made = 1") is None
    assert "made" not in shell.user_ns
    assert run(shell, COSTS + "assert made == 1") is None


def test_the_notebooks_names_are_read_fresh_in_every_gpu_cell(shell, standin):
    for value in (1, 2):
        shell.user_ns["given"] = value
        assert run(shell, COSTS + f"assert given == {value}") is None


def test_a_gpu_cell_never_changes_the_notebooks_name(shell, standin):
    shell.user_ns["given"] = 1
    run(shell, COSTS + "given = 2")
    assert shell.user_ns["given"] == 1
    assert run(shell, COSTS + "assert given == 2") is None


def test_a_name_deleted_in_the_notebook_is_gone_in_gpu_cells(shell, standin):
    shell.user_ns["given"] = 1
    run(shell, COSTS + "given")
    del shell.user_ns["given"]
    assert isinstance(run(shell, COSTS + "given"), NameError)


def test_functions_made_in_gpu_cells_find_gpu_names_later(shell, standin):
    run(shell, COSTS + "factor = 2\ndef double(x):\n    return factor * x")
    assert run(shell, COSTS + "factor = 3\nassert double(1) == 3") is None


def test_the_displayed_value_is_not_kept_by_the_notebook(shell, standin, capsys):
    run(shell, COSTS + "big = 'kept in memory'\nbig")
    assert "kept in memory" in capsys.readouterr().out
    assert "kept in memory" not in [v for k, v in shell.user_ns.items() if k.startswith("_")]
    assert not shell.user_ns["Out"]


def test_free_forgets_gpu_names_and_leaves_the_notebooks(shell, standin):
    shell.user_ns["given"] = 1
    run(shell, COSTS + "made = 1")
    gpu.free()
    assert isinstance(run(shell, COSTS + "made"), NameError)
    assert run(shell, COSTS + "assert given == 1") is None


def test_free_inside_a_gpu_cell_keeps_the_cell_going(shell, standin):
    shell.user_ns["gpu"] = gpu
    run(shell, COSTS + "made = 1")
    assert run(shell, COSTS + "gpu.free()\nagain = 2\nassert again == 2 and len([]) == 0") is None


def test_free_releases_objects_held_by_the_last_traceback(shell, standin):
    run(shell, COSTS + "class Big: pass\ndef fail(x):\n    raise ValueError\nmade = Big()")
    ref = weakref.ref(gpu._space["made"])
    try:
        gpu._space["fail"](gpu._space["made"])
    except ValueError as error:
        sys.last_traceback = error.__traceback__
    gpu.free()
    assert ref() is None


# running


def test_the_stand_in_run_says_so_and_shows_the_last_expression(shell, standin, capsys):
    run(shell, COSTS + "6 * 7")
    text = capsys.readouterr().out
    assert "stand-in run on the CPU" in text and "42" in text


def test_a_semicolon_silences_the_last_expression(shell, standin, capsys):
    run(shell, COSTS + "6 * 7;")
    assert "42" not in capsys.readouterr().out


def test_magics_and_commands_see_gpu_names(shell, standin, capfd):
    assert run(shell, COSTS + "made = 'hello'\n!echo {made}!\n%timeit -n1 -r1 made.upper()") is None
    text = capfd.readouterr().out
    assert "hello!" in text and "per loop" in text


@pytest.mark.parametrize("error", ["ZeroDivisionError", "KeyboardInterrupt"])
def test_an_exception_reaches_the_notebook_and_leaves_names_intact(shell, standin, error):
    notebook = shell.user_ns
    assert type(run(shell, COSTS + f"made = 1\nraise {error}")).__name__ == error
    assert shell.user_ns is notebook and "made" not in notebook
    assert run(shell, COSTS + "assert made == 1") is None


def test_the_traceback_points_at_the_learners_line(shell, standin):
    error = run(shell, COSTS + "x = 1\ny = x / 0")
    last = error.__traceback__
    while last.tb_next:
        last = last.tb_next
    assert last.tb_lineno == 3
    assert linecache.getline(last.tb_frame.f_code.co_filename, 3).strip() == "y = x / 0"


def test_a_missing_library_is_named_with_the_extra_that_brings_it(shell, cuda, monkeypatch, capsys):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    assert run(shell, '%%gpu minutes=1 vram=1 download=0 needs="peft,trl,mystery"\nmade = 1') is None
    text = capsys.readouterr().out
    assert '%pip install "llmcourse[peft]" "llmcourse[rlhf]" mystery' in text
    error = run(shell, COSTS + "made")
    assert isinstance(error, NameError) and "could not run here" in error.__notes__[0]


def test_a_missing_library_fails_a_stand_in_run(shell, standin, monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    error = run(shell, '%%gpu minutes=1 vram=1 download=0 needs="peft"\nmade = 1')
    assert isinstance(error, RuntimeError) and "peft" in str(error)


# on a GPU


def test_a_real_run_reports_minutes_and_peak_memory_and_records_nothing_unasked(shell, cuda, capsys):
    assert run(shell, COSTS + "x = 1") is None
    text = capsys.readouterr().out
    assert "4.2 GB of GPU memory on Tesla T4" in text and "Announced: 6 min, 5 GB" in text
    assert gpu.records() == {}


@pytest.mark.parametrize(("setting", "flag"), [("1", False), ("random-weights", True)])
def test_a_recorded_run_is_found_again_by_its_body(shell, cuda, monkeypatch, setting, flag):
    monkeypatch.setenv("LLMCOURSE_RECORD", setting)
    run(shell, '%%gpu minutes=6 vram=5 download=1 name="Kept"\nx = 1')
    entry = gpu.records()[gpu.key("x = 1")]
    assert (entry["name"], entry["device"], entry["vram"], entry["random_weights"]) == ("Kept", "Tesla T4", 4.2, flag)


def test_recording_keeps_the_runs_of_other_cells(shell, cuda, monkeypatch):
    monkeypatch.setenv("LLMCOURSE_RECORD", "1")
    for body in ("x = 1", "x = 2"):
        run(shell, COSTS + body)
    assert set(gpu.records()) == {gpu.key("x = 1"), gpu.key("x = 2")}
    assert [path.name for path in gpu.RECORDS.parent.glob("gpu_runs*")] == ["gpu_runs.json"]


def test_a_failed_run_is_not_recorded(shell, cuda, monkeypatch):
    monkeypatch.setenv("LLMCOURSE_RECORD", "1")
    run(shell, COSTS + "1 / 0")
    assert gpu.records() == {}


def test_a_gpu_too_small_for_the_cell_is_said_calmly_and_nothing_runs(shell, monkeypatch, capsys):
    monkeypatch.setattr(torch, "cuda", FakeCuda(free=3, total=4))
    assert run(shell, COSTS + "1 / 0") is None
    assert "It needs 5 GB of GPU memory; Tesla T4 has 4.0 GB" in capsys.readouterr().out


def test_a_full_gpu_is_warned_of_and_the_cell_goes_on(shell, monkeypatch, capsys):
    monkeypatch.setattr(torch, "cuda", FakeCuda(free=3, total=16))
    assert run(shell, COSTS + "print('ran')") is None
    text = capsys.readouterr().out
    assert "Only 3.0 GB of GPU memory are free" in text and "gpu.free()" in text and "ran" in text


def test_running_out_of_memory_is_explained_and_raised(shell, cuda, capsys):
    error = run(shell, COSTS + "import torch\nraise torch.cuda.OutOfMemoryError('full')")
    assert isinstance(error, torch.cuda.OutOfMemoryError)
    assert "halve the batch size" in capsys.readouterr().out


# the file and the registration


@pytest.mark.parametrize("content", ["{not json", "[1, 2]", "\x00"])
def test_a_damaged_file_of_records_is_a_warning_not_an_error(shell, content):
    gpu.RECORDS.write_text(content, encoding="utf-8")
    with pytest.warns(UserWarning, match="cannot be read"):
        assert gpu.records() == {}


def test_a_key_ignores_line_endings_and_outer_space_only():
    assert gpu.key("a = 1\r\nb = 2\n\n") == gpu.key("\na = 1\nb = 2")
    assert gpu.key("a = 1") != gpu.key("a = 2")


def test_registering_outside_ipython_does_nothing(monkeypatch):
    monkeypatch.setattr(gpu, "running_shell", lambda: None)
    gpu.register()


def executed(*cells, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMCOURSE_STANDIN", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    return NotebookClient(nb, timeout=60, kernel_name="python3").execute()


def test_in_a_real_kernel_a_stand_in_exception_and_a_leaked_name_fail_the_run(tmp_path, monkeypatch):
    scene = SimpleNamespace(tmp_path=tmp_path, monkeypatch=monkeypatch)
    setup = "from llmcourse import gpu"
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        executed(setup, COSTS + "made = 1\nmade / 0", **vars(scene))
    with pytest.raises(CellExecutionError, match="name 'made' is not defined"):
        executed(setup, COSTS + "made = 1", "made", **vars(scene))
