"""What a stranger meets first says the same as the files behind it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import llmcourse
from llmcourse.cli import address
from llmcourse.cli.checkout import notebooks
from llmcourse.start_here import NOTEBOOKS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


# ----------------------------------------------------------------------------------------------------- README and its kin


def test_every_make_target_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`|run: )make ([a-z-]+)", README + CONTRIBUTING + workflow, re.M))
    assert {"lab", "test"} <= named
    assert named <= set(re.findall(r"^([a-z-]+):", makefile, re.M))


def test_every_target_without_a_file_is_declared_phony():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())
    assert phony == set(re.findall(r"^([a-z-]+):", makefile, re.M))


def test_every_command_that_is_named_exists():
    from typer.main import get_command

    from llmcourse.cli import build

    commands = get_command(build()).commands
    for group, name in re.findall(r"`llmcourse (?:(progress) )?([a-z]+)", README + CONTRIBUTING):
        assert name in (commands[group].commands if group else commands)


def test_every_linked_file_exists():
    links = re.findall(r"\]\(([^):#]+)\)", README + CONTRIBUTING)
    assert links and not [link for link in links if not (ROOT / link).exists()]


def test_the_table_has_one_row_per_notebook_in_order():
    rows = re.findall(r"^\| \[?(\d\d_\w+)", README, re.M)
    assert rows == [notebook.stem for notebook in NOTEBOOKS]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_row_is_ready_exactly_when_the_notebook_is(notebook):
    row = next(line for line in README.splitlines() if re.match(rf"\| \[?{notebook.stem}\b", line))
    assert notebook.about in row
    assert ("| ready" in row, "| planned |" in row) == (notebook.ready, not notebook.ready)
    assert (address.badge(notebook.stem) in row, f"(notebooks/{notebook.stem}.ipynb)" in row) == (notebook.ready,) * 2


def test_the_notebooks_that_exist_are_the_ready_ones():
    assert [path.stem for path in notebooks(ROOT / "notebooks")] == [notebook.stem for notebook in NOTEBOOKS if notebook.ready]


def test_the_version_is_the_same_everywhere():
    assert PROJECT["version"] == llmcourse.__version__
    assert f"## {PROJECT['version']}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# ----------------------------------------------------------------------------------------------------------- installation


def test_environment_yml_agrees_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, listed = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}"
    assert pip == "pip"
    assert listed["pip"] == ["-c constraints.txt", "-e .[lab]"]
    assert "lab" in PROJECT["optional-dependencies"]


def test_every_extra_the_front_door_names_exists():
    others = [(ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", ".github/workflows/ci.yml")]
    named = {extra for text in (README, *others) for extra in re.findall(r"-e \"?\.\[(\w+)\]", text)}
    assert named and named <= set(PROJECT["optional-dependencies"])


def requirements(extra: str) -> list[str]:
    """The requirements of the package and of an extra, with `llmcourse[a,b]` unfolded."""
    found = list(PROJECT["dependencies"])
    for line in PROJECT["optional-dependencies"][extra]:
        nested = re.fullmatch(r"llmcourse\[(.+)\]", line)
        found += [each for name in nested[1].split(",") for each in requirements(name)] if nested else [line]
    return found


def test_every_requirement_is_pinned_within_its_range():
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {normal(name): version for name, version in (line.split("==") for line in lines)}
    for requirement in map(Requirement, requirements("dev")):
        assert requirement.specifier.contains(pins[normal(requirement.name)]), requirement


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_are_sorted_and_fit_every_machine():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert lines == sorted(lines, key=lambda line: line.partition("==")[0].lower())
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)


def test_every_pin_can_be_installed_on_the_oldest_python():
    """One that cannot sends pip searching through every version of everything, for minutes, before it gives up."""
    from importlib.metadata import distributions

    from packaging.specifiers import SpecifierSet

    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    pins = set((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    pinned = [dist for dist in distributions() if f"{dist.name}=={dist.version.partition('+')[0]}" in pins]
    needs = {dist.name: dist.metadata["Requires-Python"] for dist in pinned if dist.metadata["Requires-Python"]}
    assert [name for name, python in needs.items() if oldest not in SpecifierSet(python)] == []


def test_every_requirement_has_a_lower_bound():
    unbound = [line for line in requirements("dev") if not line.startswith("llmcourse[") and ">=" not in line]
    assert unbound == []


# ------------------------------------------------------------------------------------------------------ the public address


def test_the_address_is_the_same_everywhere():
    assert address.differences(ROOT) == {}


@pytest.fixture
def fork(tmp_path: Path) -> Path:
    """A copy of the front door, with one notebook, that has moved to another address and version."""
    for name in ("README.md", "CONTRIBUTING.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "notebooks").mkdir()
    title = new_markdown_cell(f"# LoRA\n{address.badge('04_peft')}")
    cells = [title, new_code_cell(address.install_cell("04_peft"), metadata={"tags": ["install"]}), new_code_cell("1 + 1")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / "04_peft.ipynb")
    assert address.differences(tmp_path) == {}
    text = (tmp_path / "pyproject.toml").read_text(encoding="utf-8")
    text = text.replace(PROJECT["urls"]["Repository"], "https://github.com/ada/my-course")
    text = text.replace(f'version = "{PROJECT["version"]}"', 'version = "0.2.0"')
    (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
    return tmp_path


def test_a_fork_rewrites_every_file_once(fork):
    assert {path.name for path in address.rewrite(fork)} == {"README.md", "CONTRIBUTING.md", "04_peft.ipynb"}
    assert address.rewrite(fork) == []


def test_after_a_fork_nothing_names_the_old_address(fork):
    address.rewrite(fork)
    for path in (fork / "README.md", fork / "CONTRIBUTING.md", fork / "notebooks" / "04_peft.ipynb"):
        text = path.read_text(encoding="utf-8")
        assert address.read_address(ROOT).repository not in text
        assert "ada/my-course" in text


def test_the_forks_notebook_opens_and_installs_the_forks_release(fork):
    address.rewrite(fork)
    title, install, last = nbformat.read(fork / "notebooks" / "04_peft.ipynb", as_version=4).cells
    assert "/github/ada/my-course/blob/v0.2.0/notebooks/04_peft.ipynb" in title.source
    assert "llmcourse[peft] @ git+https://github.com/ada/my-course@v0.2.0" in install.source
    assert last.source == "1 + 1"


def test_rewriting_changes_no_other_byte_of_a_notebook(fork):
    path = fork / "notebooks" / "04_peft.ipynb"
    before = path.read_text(encoding="utf-8").splitlines()
    address.rewrite(fork)
    after = path.read_text(encoding="utf-8").splitlines()
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 2 and all("ada/my-course" in line for line in changed)


def test_an_address_that_colab_cannot_open_is_refused(fork):
    text = (fork / "pyproject.toml").read_text(encoding="utf-8")
    (fork / "pyproject.toml").write_text(text.replace("github.com/ada", "gitlab.com/ada"), encoding="utf-8")
    with pytest.raises(ValueError, match="not a GitHub repository"):
        address.differences(fork)


# -------------------------------------------------------------------------------------------------------- the install cell

HARNESS = """
import importlib.util, json, os, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
real, calls = importlib.util.find_spec, []
installed = {installed}
importlib.util.find_spec = lambda name, *more: (object() if installed else None) if name == "llmcourse" else real(name, *more)

def system(command):
    global installed
    calls.append(shell.var_expand(command, depth=1))
    installed = installed or {succeeds}

shell.system = system
result = shell.run_cell({cell!r})
keep = [word for call in calls for word in call.split('"') if word.endswith("llmcourse-keep.txt")]
print("RESULT" + json.dumps([calls, repr(result.error_in_exec), open(keep[0]).read() if keep else ""]))
"""


def run_install_cell(tmp_path: Path, cell: str, installed: bool = False, succeeds: bool = True, before: str = "", **env: str):
    """Run the cell in an IPython shell whose commands are recorded, not run; return commands, error, constraints."""
    code = before + HARNESS.format(cell=cell, installed=installed, succeeds=succeeds)
    env = {**os.environ, "IPYTHONDIR": str(tmp_path), "TMPDIR": str(tmp_path), "TEMP": str(tmp_path), "TMP": str(tmp_path), **env}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert "RESULT" in done.stdout, done.stderr
    return json.loads(done.stdout.partition("RESULT")[2])


def test_the_install_cell_does_nothing_where_the_course_is(tmp_path):
    assert run_install_cell(tmp_path, address.install_cell("01_transformer"), installed=True)[:2] == [[], "None"]


def test_the_install_cell_installs_the_release_the_notebook_belongs_to(tmp_path):
    (command,), error, _ = run_install_cell(tmp_path, address.install_cell("01_transformer"))
    assert error == "None"
    assert f'install -q "llmcourse @ git+{PROJECT["urls"]["Repository"]}@v{PROJECT["version"]}" -c ' in command


def test_the_install_cell_takes_a_local_wheel_with_its_extras(tmp_path):
    (command,), *_ = run_install_cell(tmp_path, address.install_cell("04_peft"), LLMCOURSE_WHEEL="/x/llmcourse-1.whl")
    assert 'install -q "/x/llmcourse-1.whl[peft]" -c ' in command


def test_the_install_cell_pins_what_must_not_move_without_local_suffix(tmp_path):
    from importlib.metadata import version

    *_, keep = run_install_cell(tmp_path, address.install_cell("01_transformer"))
    assert f"numpy=={version('numpy')}" in keep.splitlines()
    assert f"torch=={version('torch').partition('+')[0]}" in keep.splitlines()
    assert {line.partition("==")[0] for line in keep.splitlines()} <= {
        "torch", "torchvision", "torchaudio", "numpy", "transformers", "ipywidgets"
    }  # fmt: skip


def test_the_install_cell_fails_loudly_when_pip_did(tmp_path):
    _, error, _ = run_install_cell(tmp_path, address.install_cell("01_transformer"), succeeds=False)
    assert "RuntimeError" in error and "pip could not install llmcourse" in error


def test_on_colab_the_old_torchao_goes_where_peft_comes(tmp_path):
    colab = "import sys, types; sys.modules['google.colab'] = types.ModuleType('google.colab')\n"
    commands, *_ = run_install_cell(tmp_path, address.install_cell("04_peft"), before=colab)
    assert "uninstall -q -y torchao" in commands[1]
    assert len(run_install_cell(tmp_path, address.install_cell("04_peft"))[0]) == 1


@pytest.mark.parametrize("stem", ["01_transformer", "04_peft"])
def test_the_install_cell_is_short(stem):
    lines = [line for line in address.install_cell(stem).splitlines() if line.strip()]
    assert len(lines) <= 15 and max(map(len, lines)) <= 130


# ---------------------------------------------------------------------------------------------------------- the whole house


def test_no_source_file_names_this_machine_or_a_private_package_index():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    texts = [ROOT / name for name in tracked if name.endswith((".py", ".md", ".toml", ".yml", ".txt", "Makefile"))]
    private = re.compile(re.escape(str(ROOT)) + r"|(?:index-url|find-links)[ =](?!https://download\.pytorch\.org)")
    assert [path.name for path in texts if path.is_file() and private.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("path", sorted((ROOT / "llmcourse").rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_says_what_it_does_and_what_it_exports(path):
    module = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(module)
    # A package of nothing but its docstring exports nothing; an exercises module registers.
    names = {node.id for node in ast.walk(module) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert len(module.body) == 1 or "exercises" in (path.stem, path.parent.name) or names & {"__all__", "__version__"}
