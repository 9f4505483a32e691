"""Run the notebook check: `python tests/notebooks/check.py [--hard-pytest-options] [NOTEBOOK or folder …]`, default `notebooks`.

Every cell runs through nbval on CPU with stand-ins for GPU cells, offline, two notebooks at a time; where the system allows it
the whole run happens in a network namespace that holds nothing but a loopback interface, so that offline is a fact.
Arguments beginning with "-" go to pytest.
"""

import ctypes
import os
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SIDES = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "LLMCOURSE_STANDIN": "1", "LLMCOURSE_STRICT": "1", "LLMCOURSE_GPU": "0"}
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1


def leave_the_network() -> None:
    """Move this process into a network namespace with loopback only. Raises OSError where the system refuses (or is no Linux)."""
    if sys.platform != "linux":
        raise OSError("network namespaces are Linux's")
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    import fcntl

    with socket.socket() as any_socket:  # Jupyter's kernels talk over 127.0.0.1, which starts out down
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def can_leave_the_network() -> bool:
    """Try in a process of its own: a half-made namespace has no way back."""
    return subprocess.run([sys.executable, __file__, "--probe"], stderr=subprocess.DEVNULL).returncode == 0


def pytest_command(arguments: list[str]) -> list[str]:
    options = [argument for argument in arguments if argument.startswith("-")]
    paths = [argument for argument in arguments if not argument.startswith("-")] or [str(ROOT / "notebooks")]
    nbval = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300", "-p", "course_plugin"]
    return [sys.executable, "-m", "pytest", *nbval, "-n", "2", "--dist", "loadscope", "-q", *options, *paths]


def main(arguments: list[str]) -> int:
    from llmcourse.cli.kernel_guard import write_profile

    if can_leave_the_network():
        leave_the_network()
    else:
        print("This system lets no process leave the network: cells are refused it by an audit hook instead.", flush=True)
    with tempfile.TemporaryDirectory(prefix="llmcourse-check-") as scratch:
        python_path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
        profile = write_profile(Path(scratch, "ipython"))
        env = {**os.environ, **SIDES, "PYTHONPATH": python_path, "IPYTHONDIR": str(profile)}
        return subprocess.run(pytest_command(arguments), cwd=ROOT, env=env).returncode


if __name__ == "__main__":
    if sys.argv[1:] == ["--probe"]:
        leave_the_network()
    else:
        sys.exit(main(sys.argv[1:]))
