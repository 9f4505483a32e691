"""A person at a computer: JupyterLab on a learner's own copy of the course, and a real browser to use it with."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from llmcourse.cli.lab import copy_notebooks

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", OFFLINE]
# No news pop-up over the page, and every cell in it at once: JupyterLab otherwise draws only those in view.
SETTINGS = {
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    "notebook-extension/tracker": '{"windowingMode": "none", "codeCellConfig": {"autoClosingBrackets": false}}',
}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium. Without one: a failure in CI, elsewhere a skip that says how to get it."""
    with sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, CHROMIUM)), playwright.chromium.executable_path)
        if not Path(path).exists():
            missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            missing("no browser: `make browser`, or on Debian and Ubuntu `apt-get install chromium`")
        running = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        yield running
        running.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address and token of a JupyterLab that knows nothing of this machine's user."""
    home = tmp_path_factory.mktemp("learner")
    copy_notebooks(NOTEBOOKS, home / "my_notebooks")
    token, port = secrets.token_hex(8), _free_port()
    server = {"port": port, "token": token, "root_dir": home / "my_notebooks", "open_browser": False, "allow_root": True}
    arguments = [f"--ServerApp.{name}={value}" for name, value in server.items()]
    command = [sys.executable, "-m", "jupyterlab", *arguments]
    with (home / "jupyter.log").open("w") as log:
        process = subprocess.Popen(command, env=_environment(home), stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{port}/api?token={token}", process, home / "jupyter.log")
        yield f"http://127.0.0.1:{port}", token
    finally:
        process.terminate()
        process.wait(timeout=30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _environment(home: Path) -> dict[str, str]:
    for name, text in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    folders = {
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
        "LLMCOURSE_HOME": "progress",
    }
    return {**os.environ, **{name: str(home / folder) for name, folder in folders.items()}}


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text(encoding='utf-8')}")


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Page]:
    """A browser window; what it showed last is kept as a picture in the test's folder."""
    window = browser.new_page(viewport={"width": 1280, "height": 1000})
    window.set_default_timeout(60_000)
    yield window
    window.screenshot(path=tmp_path / "last.png")
    window.close()
