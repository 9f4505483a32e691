"""The learner's own notebooks: copied from the course, refreshed while untouched, never overwritten once edited.

    notebooks/ ──► my_notebooks/        new: added · untouched and outdated: updated · edited: kept

Does:     tells an edit from an autosaved output by comparing cell sources with their hash at copying time; starts JupyterLab.
Leaves out: merging the course's changes into an edited notebook.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .checkout import notebooks

__all__ = ["copy_notebooks", "sources_hash", "start_lab", "write_atomically"]

MANIFEST = ".llmcourse.json"


def copy_notebooks(course: Path, own: Path) -> list[str]:
    """Bring the learner's folder `own` up to date with `course` and return one line per notebook that says what was done."""
    own.mkdir(parents=True, exist_ok=True)
    manifest = _read_manifest(own)
    said = [_copy(notebook, own / notebook.name, manifest) for notebook in notebooks(course)]
    write_atomically(own / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return said


def sources_hash(path: Path) -> str | None:
    """Return a hash of the notebook's cell types and sources alone, or None where the file is not a notebook."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        content = [[cell["cell_type"], "".join(cell["source"])] for cell in cells]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def start_lab(notebook: Path, *, browser: bool = True, port: int | None = None) -> int:
    """Serve the notebook's folder in JupyterLab, opened on `notebook`, until it is shut down; return its exit code."""
    process = subprocess.Popen(_lab_command(notebook, browser, port))
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # JupyterLab received it too and asks whether to shut down: let it
            continue


def _lab_command(notebook: Path, browser: bool, port: int | None) -> list[str]:
    command = [sys.executable, "-m", "jupyterlab", str(notebook), f"--ServerApp.root_dir={notebook.parent}"]
    command += [] if browser else ["--no-browser"]
    command += [f"--port={port}"] if port else []
    # In a container the learner is root, and Jupyter would refuse to start; it listens on this machine only, behind its token.
    return command + (["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])


def write_atomically(path: Path, text: str) -> None:
    """Replace the file's content in one step: a reader, or a power cut, sees the old text or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _read_manifest(own: Path) -> dict[str, str]:
    """Return the hash of each notebook when it was copied; empty where the record is missing or broken."""
    try:
        record = json.loads((own / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _copy(source: Path, target: Path, manifest: dict[str, str]) -> str:
    new, old, copied = sources_hash(source), sources_hash(target), manifest.get(source.name)
    if target.exists() and old != new and (old is None or old != copied):
        changed = "" if copied == new else f"; the course's version differs: rename or delete yours to get {source}"
        return f"kept     {source.name} (you edited it{changed})"
    manifest[source.name] = new
    if target.exists() and old == new:
        return f"current  {source.name}"
    said = "updated" if target.exists() else "added"
    write_atomically(target, source.read_text(encoding="utf-8"))
    return f"{said:8} {source.name}"
