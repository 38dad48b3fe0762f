"""A server that has imported the package once and forks a copy of itself for every `python run.py` that a test starts.

    python tests/e2e/preloaded.py SOCKET [MODULE ...]

Importing torch, Lightning and DeepSpeed takes nine seconds of CPU time, and a run of two ranks is three processes. A forked process
has its own id, parent, signals, environment and exit status, like one that was started with the interpreter; only the imports are
not repeated. The ranks that such a run starts are forked from it in the same way.

SOCKET is the inherited file descriptor of a SOCK_SEQPACKET socket. Each message starts one run: a JSON object with `arguments`,
`folder` and `environment`, and three file descriptors: standard output, standard error, and one to which the process id is written
and, when the process has ended, its exit status as `subprocess.Popen.returncode` has it, each on a line.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def _fork(work: Callable[[], object]) -> int:
    """Return the id of a new process that does `work` and ends with its exit status."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    finally:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, SystemExit):
            sys.excepthook(type(error), error, error.__traceback__)
        sys.stdout.flush()
        sys.stderr.flush()
        code = error.code if isinstance(error, SystemExit) else int(error is not None)
        os._exit(code if isinstance(code, int) else int(code is not None))


class Signalled:
    """The part of `subprocess.Popen` that sends signals to a process; a subclass has its `pid` and `poll`."""

    pid: int

    def poll(self) -> int | None:
        """Return the exit status, None while the process runs."""
        raise AssertionError("a subclass says how")

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless the process has ended."""
        self.send_signal(signal.SIGKILL)


class ForkedRank(Signalled):
    """The part of `subprocess.Popen` that `cdpo_lightning.launch` uses, for `python -m MODULE ARGUMENTS`."""

    def __init__(self, command: list[str], env: Mapping[str, str], start_new_session: bool) -> None:
        _, option, module, *arguments = command
        assert (option, start_new_session) == ("-m", True)
        self.returncode: int | None = None

        def work() -> object:
            os.setsid()
            _enter({**env}, [module, *arguments])
            return sys.exit(importlib.import_module(module).main())

        self.pid = _fork(work)

    def poll(self) -> int | None:
        """Return the exit status, None while the rank runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int:
        """Return the exit status when the rank has ended."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


def _enter(environment: dict[str, str], arguments: list[str]) -> None:
    """Make environment, arguments and signal handlers those of a fresh process."""
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    sys.excepthook = sys.__excepthook__
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(request: dict, output: int, errors: int) -> None:
    """Be `python run.py ARGUMENTS` with these file descriptors of standard output and standard error."""
    from cdpo_lightning import launch

    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.chdir(request["folder"])
    _enter(request["environment"], [str(ROOT / "run.py"), *request["arguments"]])
    launch.subprocess = types.SimpleNamespace(Popen=ForkedRank)
    runpy.run_path(sys.argv[0], run_name="__main__")


def _serve(request: dict, output: int, errors: int, answers: int) -> None:
    """Start one run, and write its process id and its exit status."""
    pid = _fork(lambda: (os.close(answers), _run(request, output, errors)))
    os.write(answers, f"{pid}\n".encode())
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(answers, f"{status}\n".encode())


def main() -> None:
    """Import the modules, then start runs until the other end of the socket is closed."""
    descriptor, *modules = sys.argv[1:]
    requests = socket.socket(fileno=int(descriptor))
    for name in modules:
        importlib.import_module(name)
    handlers: list[int] = []
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 3)
        if not message:
            return
        handlers = [pid for pid in handlers if not os.waitpid(pid, os.WNOHANG)[0]]
        request = json.loads(message)
        handlers.append(_fork(lambda request=request, descriptors=descriptors: (requests.close(), _serve(request, *descriptors))))
        for each in descriptors:
            os.close(each)


if __name__ == "__main__":
    main()
