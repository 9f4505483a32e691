"""What a notebook's kernel must not let pass: a failing command, and the network.

IPython runs this file at the start of every kernel that checks or re-executes a notebook (see `write_profile`).

Does:     makes `!command`, `x = !command` and `%pip` raise when the command fails; refuses every address outside this machine
          while HF_HUB_OFFLINE=1.
Leaves out: commands' own network use and libraries that open sockets outside Python; for those CI takes the network away.
Source:   sys.audit events, https://docs.python.org/3/library/audit_events.html
"""

import os
import socket
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

__all__ = ["NetworkError", "guard_commands", "guard_network", "write_profile"]


class NetworkError(RuntimeError):
    """A cell tried to leave this machine. Not an OSError, so that `except OSError` does not hide it."""


def write_profile(directory: Path) -> Path:
    """Write an IPython directory whose kernels are guarded, and return it; give it to a kernel as IPYTHONDIR.

    The guard travels as a file of its own, so it also works in an environment where llmcourse is not installed yet.
    """
    startup = directory / "profile_default" / "startup"
    startup.mkdir(parents=True, exist_ok=True)
    guard = directory / "kernel_guard.py"
    guard.write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    # A namespace of its own: nothing of this reaches the notebook's.
    run = f"exec(compile(open({str(guard)!r}, encoding='utf-8').read(), 'kernel_guard.py', 'exec'), {{'__name__': 'guard'}})\n"
    (startup / "00_guard.py").write_text(run, encoding="utf-8")
    return directory


def guard_commands(shell: object) -> None:
    """Make every `!command` and `%pip` of `shell` raise `subprocess.CalledProcessError` when the command fails."""
    original = shell.system

    def system(command: str) -> None:
        expanded = shell.var_expand(command, depth=1)
        shell.var_expand = lambda text, *args, **kwargs: text  # expanded once already, with the right frame
        try:
            original(expanded)
        finally:
            del shell.var_expand
        _raise_on_failure(shell.user_ns.get("_exit_code", 0), expanded)

    def getoutput(command: str, split: bool = True, depth: int = 0) -> object:
        from IPython.utils.text import LSString, SList

        expanded = shell.var_expand(command, depth=depth + 1)
        done = subprocess.run(expanded, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        _raise_on_failure(done.returncode, expanded, done.stdout)
        return SList(done.stdout.splitlines()) if split else LSString(done.stdout)

    shell.system, shell.getoutput = system, getoutput


def _raise_on_failure(code: int, command: str, output: str | None = None) -> None:
    if code:
        raise subprocess.CalledProcessError(code, command, output)


def guard_network() -> None:
    """Refuse connections and name look-ups beyond this machine, for the rest of the process."""
    own_names = {"localhost", socket.gethostname()}

    def hook(event: str, args: tuple) -> None:
        host = _host(event, args)
        if host is not None and host not in own_names and not _is_local(host):
            raise NetworkError(f"{event} reached for {host!r}, but notebooks run offline; take models and data from zoo and data")

    sys.addaudithook(hook)


def _host(event: str, args: tuple) -> str | None:
    """The host an audit event reaches for; None when it is no network event, or concerns no particular host."""
    if event in ("socket.connect", "socket.sendto"):
        address = args[1]
        return address[0] if isinstance(address, tuple) else None
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        name = args[0].decode() if isinstance(args[0], bytes) else args[0]
        return name or None
    return None


def _is_local(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _guard_this_kernel() -> None:
    from IPython import get_ipython

    guard_commands(get_ipython())
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        guard_network()


if __name__ == "guard":
    _guard_this_kernel()
