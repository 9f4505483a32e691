"""The command line: every command runs, and every mistake gets its way out."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from packaging.requirements import Requirement
from typer.testing import CliRunner, Result

from llmcourse.cli import address, app, checkout, doctor, lab
from llmcourse.exercise.progress import Progress


def llmcourse(*arguments: object) -> Result:
    return CliRunner().invoke(app.build(), list(map(str, arguments)))


def write_notebook(path: Path, *sources: str, outputs: list | None = None) -> Path:
    nb = new_notebook(cells=[new_code_cell(source, outputs=outputs or []) for source in sources])
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    return path


# ------------------------------------------------------------------------------------------------------------ the command


def test_help_names_every_command():
    result = llmcourse("--help")
    assert result.exit_code == 0
    assert all(name in result.output for name in ("doctor", "lab", "run", "progress", "claims", "measure", "pin", "address"))


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from llmcourse.cli import app; app.build()\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'matplotlib', 'nbformat') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_version_is_the_packages():
    assert llmcourse("--version").output.strip() == address.read_address().tag.removeprefix("v")


def test_output_is_utf8_on_a_console_with_an_old_code_page():
    code = "from llmcourse.cli import app; app.speak_utf8(); print('✓')"
    env = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env)
    assert done.stdout.decode("utf-8").strip() == "✓"


def test_a_topic_that_cannot_be_imported_leaves_the_other_commands(monkeypatch, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "__init__.py").write_text("")
    (broken / "commands.py").write_text("import no_such_library")
    monkeypatch.setattr(app.llmcourse, "__path__", [str(tmp_path)])
    built = app.build()
    assert "no_such_library" in capsys.readouterr().err
    assert CliRunner().invoke(built, ["measure"]).exit_code == 0


# ------------------------------------------------------------------------------------------------------------------ doctor


def test_doctor_finds_no_blocker_where_the_tests_run():
    result = llmcourse("doctor")
    assert result.exit_code == 0, result.output
    assert "packages" in result.output


def test_a_missing_required_package_is_a_blocker_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "tqdm" else doctor.metadata.version(name))
    finding = next(finding for finding in doctor._packages() if finding.subject == "tqdm")
    assert finding.status == "blocker"
    assert finding.fix.startswith('pip install "tqdm>=')


def test_a_package_outside_the_supported_range_is_a_blocker_that_states_both(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "0.1" if name == "numpy" else doctor.metadata.version(name))
    finding = next(finding for finding in doctor._packages() if finding.subject == "numpy")
    assert finding.status == "blocker"
    assert "0.1" in finding.found and ">=" in finding.found


def test_a_missing_optional_package_is_neither_warning_nor_blocker(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "trl" else doctor.metadata.version(name))
    assert [finding.status for finding in doctor._packages() if "trl" in finding.subject + finding.found] == ["idle"]


def test_a_local_version_suffix_is_within_the_range(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "2.13.0+cpu")
    assert doctor._package(Requirement("torch>=2.11,<3")) is None


@pytest.mark.parametrize(("version", "warned"), [("0.10.0", True), ("0.15.9", True), ("0.16.0", False)])
def test_torchao_warns_exactly_where_peft_would_raise(monkeypatch, version, warned):
    versions = {"torchao": version, "peft": "0.21.2"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    assert [finding.subject for finding in doctor._conflicts()] == ["torchao"] * warned


def test_the_torchao_limit_is_the_one_of_the_installed_peft():
    import inspect

    import_utils = pytest.importorskip("peft.import_utils")
    assert f'"{doctor.TORCHAO_MINIMUM}"' in inspect.getsource(import_utils.is_torchao_available)


def test_a_torchvision_for_another_torch_is_reported(monkeypatch):
    monkeypatch.setattr(doctor, "_version", {"torchvision": "0.20", "torch": "2.13.0+cpu"}.get)
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["numpy", "torch==2.5.0"])
    (finding,) = doctor._conflicts()
    assert finding.subject == "torchvision" and "2.5.0" in finding.found and "uninstall" in finding.fix


def test_more_threads_than_cores_is_warned_of(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    (finding,) = doctor._cores()
    assert finding.status == "warning" and "OMP_NUM_THREADS" in finding.fix


def test_little_memory_is_warned_of(monkeypatch):
    import psutil

    memory = psutil.virtual_memory()._replace(available=2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    (finding,) = doctor._memory()
    assert finding.status == "warning"


@pytest.mark.parametrize(("real_bf16", "capability"), [(False, (7, 5)), (True, (8, 0))])
def test_emulated_bfloat16_is_not_offered(monkeypatch, real_bf16, capability):
    import torch

    class Properties:
        name, total_memory = "T4", 16 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or real_bf16)
    formats = doctor._device(0).partition(": ")[2].partition(" (")[0].split(", ")
    assert ("bfloat16" in formats) == real_bf16


def test_a_check_that_raises_becomes_a_warning_and_the_others_still_run(monkeypatch):
    def broken():
        raise RuntimeError("driver says no")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (broken, doctor._cores))
    first, second = doctor.examine()
    assert first.status == "warning" and "driver says no" in first.found
    assert second.subject == "cores"


def test_warnings_do_not_block_and_blockers_do():
    assert not doctor.has_blocker([doctor.Finding("warning", "memory", "1 GiB")])
    assert doctor.has_blocker([doctor.Finding("ok", "a", ""), doctor.Finding("blocker", "numpy", "missing")])


# ------------------------------------------------------------------------------------------------------------- which notebook


@pytest.fixture
def course(tmp_path: Path) -> Path:
    folder = tmp_path / "notebooks"
    for stem in ("00_start_here", "01_transformer"):
        write_notebook(folder / f"{stem}.ipynb", f"name = '{stem}'")
    return folder


@pytest.mark.parametrize("name", ["1", "01", "transformer", "01_transformer", "01_transformer.ipynb"])
def test_a_notebook_is_found_by_number_topic_or_stem(course, name):
    assert checkout.find(name, course).stem == "01_transformer"


def test_an_existing_path_is_taken_as_it_is(course):
    path = course / "00_start_here.ipynb"
    assert checkout.find(str(path), course) == path


def test_a_misspelt_notebook_suggests_the_nearest(course):
    with pytest.raises(checkout.NotFoundError, match=r"did you mean 01_transformer\?"):
        checkout.find("transfomer", course)


def test_an_unknown_notebook_lists_all(course):
    with pytest.raises(checkout.NotFoundError, match="choose from 00_start_here, 01_transformer"):
        checkout.find("zzz", course)


def test_a_package_without_its_checkout_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkout, "__file__", str(tmp_path / "site" / "llmcourse" / "cli" / "checkout.py"))
    result = llmcourse("lab", "--copy-only")
    assert result.exit_code == 1
    assert "clone" in result.output


# --------------------------------------------------------------------------------------------------------------------- run


def test_run_reports_seconds_and_memory(tmp_path):
    result = llmcourse("run", write_notebook(tmp_path / "a.ipynb", "1 + 1"))
    assert result.exit_code == 0, result.output
    assert "✓ a.ipynb" in result.output and "GiB" in result.output


def test_run_prints_the_failing_cell_and_the_end_of_its_traceback_and_exits_1(tmp_path):
    result = llmcourse("run", write_notebook(tmp_path / "a.ipynb", "x = 1", "x / 0  # here"))
    assert result.exit_code == 1
    assert "a.ipynb, code cell 2: ZeroDivisionError" in result.output
    assert "x / 0  # here" in result.output


def test_a_failing_notebook_does_not_keep_the_next_from_running(tmp_path):
    paths = [write_notebook(tmp_path / "a.ipynb", "1 / 0"), write_notebook(tmp_path / "b.ipynb", "2")]
    result = llmcourse("run", *paths)
    assert result.exit_code == 1
    assert "✗ a.ipynb" in result.output and "✓ b.ipynb" in result.output


def test_gpu_and_standin_together_are_refused():
    assert "exclude each other" in llmcourse("run", "--gpu", "--standin").output


def test_run_of_an_unknown_notebook_exits_1():
    assert llmcourse("run", "zzz").exit_code == 1


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process on Windows")
def test_an_interrupted_run_leaves_no_kernel_behind(tmp_path):
    import signal
    import time

    import psutil

    started = tmp_path / "started"
    notebook = write_notebook(tmp_path / "slow.ipynb", f"import time; open({str(started)!r}, 'w').close(); time.sleep(100)")
    process = subprocess.Popen([sys.executable, "-m", "llmcourse.cli", "run", str(notebook)], stdout=subprocess.PIPE)
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.05)
    kernels = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) != 0
    process.stdout.close()
    _, alive = psutil.wait_procs(kernels, timeout=10)
    assert kernels and not alive


# --------------------------------------------------------------------------------------------------------- progress, claims


def test_progress_shows_what_was_solved():
    Progress().attempt("start_here/softmax_with_temperature", "solved")
    result = llmcourse("progress", "show")
    assert result.exit_code == 0, result.output
    assert "✓ solved" in result.output


def test_exported_progress_can_be_imported_elsewhere(tmp_path, monkeypatch):
    Progress().attempt("topic/one", "solved")
    assert llmcourse("progress", "export", tmp_path / "ada.json", "--learner", "Ada").exit_code == 0
    monkeypatch.setenv("LLMCOURSE_HOME", str(tmp_path / "other"))
    assert llmcourse("progress", "import", tmp_path / "ada.json").exit_code == 0
    assert Progress().read()["topic/one"].state == "solved"


def test_merged_progress_counts_a_class_and_writes_a_spreadsheet(tmp_path):
    for name, state in (("Ada", "solved"), ("Bob [x]", "wrong")):
        store = Progress(tmp_path / f"{name[:3]}-store.json")
        store.attempt("topic/one", state)
        store.export(tmp_path / f"{name[:3]}.json", name)
    result = llmcourse("progress", "merge", tmp_path / "Ada.json", tmp_path / "Bob.json", "--csv", tmp_path / "class.csv")
    assert result.exit_code == 0, result.output
    assert "Bob [x]" in result.output and "1/1" in result.output and "0/1" in result.output
    rows = (tmp_path / "class.csv").read_text(encoding="utf-8-sig").splitlines()
    assert rows == ["learner,topic/one", "Ada,solved", "Bob [x],wrong"]


def test_a_file_that_is_no_progress_exits_1_and_is_named(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    result = llmcourse("progress", "merge", tmp_path / "x.json")
    assert result.exit_code == 1
    assert "x.json" in result.output


def test_claims_prints_every_entry_of_the_ledger():
    from llmcourse.claims import LEDGER

    result = llmcourse("claims", "--json")
    assert result.exit_code == 0, result.output
    assert {row["id"] for row in json.loads(result.output)} == set(LEDGER)


def test_claims_shows_measurement_and_verdict_in_its_table(monkeypatch):
    from llmcourse import claims

    row = {"id": "lora", "notebook": "04_peft", "claim": "fewer [far]", "published": "1 %", "measured": "2 %", "verdict": "fails"}
    monkeypatch.setattr(claims, "ledger", lambda paths: [row])
    assert all(text in llmcourse("claims").output for text in row.values())


def test_an_unknown_measurement_suggests_the_nearest(monkeypatch):
    monkeypatch.setattr(app, "MEASUREMENTS", {"probing": lambda: None})
    result = llmcourse("measure", "probbing")
    assert result.exit_code == 1
    assert "did you mean probing?" in result.output


def test_a_known_measurement_runs(monkeypatch):
    ran = []
    monkeypatch.setattr(app, "MEASUREMENTS", {"probing": lambda: ran.append(1)})
    assert llmcourse("measure", "probing").exit_code == 0
    assert ran == [1]


def test_pin_offline_says_so_and_exits_1(monkeypatch):
    from llmcourse import zoo

    def offline():
        raise zoo.Offline("run it online")

    monkeypatch.setattr(zoo, "pin", offline)
    result = llmcourse("pin")
    assert result.exit_code == 1
    assert "run it online" in result.output


# ------------------------------------------------------------------------------------------------- the learner's own copies


@pytest.fixture
def own(course: Path, tmp_path: Path) -> Path:
    """The learner's folder after a first copy."""
    folder = tmp_path / "my_notebooks"
    lab.copy_notebooks(course, folder)
    return folder


def source_of(path: Path) -> str:
    return nbformat.read(path, as_version=4).cells[0].source


def autosave(path: Path) -> None:
    """What JupyterLab does by itself: the same sources, with outputs."""
    write_notebook(path, source_of(path), outputs=[new_output("stream", text="hi")])


def test_the_first_copy_adds_every_notebook(course, tmp_path):
    said = lab.copy_notebooks(course, tmp_path / "own")
    assert [line.split() for line in said] == [["added", "00_start_here.ipynb"], ["added", "01_transformer.ipynb"]]


def test_a_second_copy_changes_nothing(course, own):
    before = {path.name: path.stat().st_mtime_ns for path in own.glob("*.ipynb")}
    assert all(line.startswith("current") for line in lab.copy_notebooks(course, own))
    assert {path.name: path.stat().st_mtime_ns for path in own.glob("*.ipynb")} == before


def test_a_new_notebook_is_added_beside_the_old(course, own):
    write_notebook(course / "02_pretraining.ipynb", "new")
    assert lab.copy_notebooks(course, own)[-1].split() == ["added", "02_pretraining.ipynb"]
    assert (own / "02_pretraining.ipynb").exists()


def test_an_unedited_notebook_is_refreshed(course, own):
    write_notebook(course / "01_transformer.ipynb", "better")
    assert lab.copy_notebooks(course, own)[1].split() == ["updated", "01_transformer.ipynb"]
    assert source_of(own / "01_transformer.ipynb") == "better"


def test_an_edited_notebook_is_never_overwritten(course, own):
    write_notebook(own / "01_transformer.ipynb", "mine")
    for source in ("better", "better still"):
        write_notebook(course / "01_transformer.ipynb", source)
        assert lab.copy_notebooks(course, own)[1].startswith("kept")
        assert source_of(own / "01_transformer.ipynb") == "mine"


def test_an_edited_notebook_that_the_course_changed_is_told_of(course, own):
    write_notebook(own / "01_transformer.ipynb", "mine")
    assert "differs" not in lab.copy_notebooks(course, own)[1]
    write_notebook(course / "01_transformer.ipynb", "better")
    assert "differs" in lab.copy_notebooks(course, own)[1]


def test_autosaved_outputs_are_no_edit(course, own):
    autosave(own / "01_transformer.ipynb")
    write_notebook(course / "01_transformer.ipynb", "better")
    assert lab.copy_notebooks(course, own)[1].startswith("updated")


def test_outputs_survive_when_the_course_has_not_changed(course, own):
    autosave(own / "01_transformer.ipynb")
    assert lab.copy_notebooks(course, own)[1].startswith("current")
    assert nbformat.read(own / "01_transformer.ipynb", as_version=4).cells[0].outputs


def test_an_edit_taken_back_is_refreshed_again(course, own):
    original = source_of(own / "01_transformer.ipynb")
    write_notebook(own / "01_transformer.ipynb", "mine")
    lab.copy_notebooks(course, own)
    write_notebook(own / "01_transformer.ipynb", original)
    write_notebook(course / "01_transformer.ipynb", "better")
    assert lab.copy_notebooks(course, own)[1].startswith("updated")


def test_without_its_record_a_different_notebook_counts_as_edited(course, own):
    (own / lab.MANIFEST).write_text("broken")
    write_notebook(course / "01_transformer.ipynb", "better")
    assert lab.copy_notebooks(course, own)[1].startswith("kept")


def test_a_damaged_notebook_of_the_learner_is_kept(course, own):
    (own / "01_transformer.ipynb").write_text("half a file")
    assert lab.copy_notebooks(course, own)[1].startswith("kept")
    assert (own / "01_transformer.ipynb").read_text() == "half a file"


def test_the_learners_own_files_stay(course, own):
    (own / "ideas.ipynb").write_text("mine")
    lab.copy_notebooks(course, own)
    assert (own / "ideas.ipynb").read_text() == "mine"


def test_a_copy_that_fails_half_way_leaves_the_old_file(own, monkeypatch):
    target = own / "01_transformer.ipynb"
    before = target.read_text(encoding="utf-8")

    def refuse(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(lab.os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        lab.write_atomically(target, "new")
    assert target.read_text(encoding="utf-8") == before
    assert not list(own.glob("*.tmp")) and not list(own.glob(".*.tmp"))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has no root")
@pytest.mark.parametrize(("user", "allowed"), [(0, True), (1000, False)])
def test_only_root_passes_jupyter_its_permission(user: int, allowed: bool, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert ("--allow-root" in lab._lab_command(tmp_path / "a.ipynb", browser=False, port=None)) is allowed


def test_lab_starts_jupyter_on_the_first_notebook_of_the_learners_folder(tmp_path, monkeypatch):
    called = {}
    monkeypatch.setattr(lab, "start_lab", lambda path, **options: called.update(options, path=path) or 0)
    result = llmcourse("lab", "--folder", tmp_path / "own", "--no-browser", "--port", 9000)
    assert result.exit_code == 0, result.output
    assert called == {"path": tmp_path / "own" / "00_start_here.ipynb", "browser": False, "port": 9000}
