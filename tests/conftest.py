"""Every test: offline, one thread, a learner's folder of its own, and shapes checked at run time."""

import os
import signal
from pathlib import Path

import jaxtyping
import pytest

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", MPLBACKEND="Agg", TOKENIZERS_PARALLELISM="false")
for name in ("LLMCOURSE_STANDIN", "LLMCOURSE_STRICT", "LLMCOURSE_GPU", "LLMCOURSE_WHEEL"):
    os.environ.pop(name, None)

# Tests started in the background inherit an ignored Ctrl-C, and so would the programs they interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before anything of llmcourse is imported: from here on `Float[Tensor, "batch seq"]` in a signature is a promise that is checked.
# An int is a fair float here, as it is to type checkers.
jaxtyping.install_import_hook("llmcourse", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


@pytest.fixture(autouse=True)
def learner_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty LLMCOURSE_HOME: no test reads or writes the progress of whoever runs it."""
    home = tmp_path / "llmcourse-home"
    monkeypatch.setenv("LLMCOURSE_HOME", str(home))
    return home
