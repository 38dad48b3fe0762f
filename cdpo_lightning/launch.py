"""Starts the ranks of a run on this machine and supervises them; a single process, or a rank of torchrun or srun, runs at once.

Each rank is a process that reads the resolved configuration from a file, so all ranks use the same folder, and a sweep can run jobs
with several ranks. The first failure stops all ranks and is reported in one line. No rank outlives its parent. docs/design.md
explains why torch's elastic launcher is not used.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from cdpo_lightning import ranks
from cdpo_lightning.config import RunConfig, parse, plain
from cdpo_lightning.errors import CDPOError, ConfigError, RankError
from cdpo_lightning.evaluation.metrics import Metrics
from cdpo_lightning.pipeline import run as pipeline

check, evaluate = pipeline.check, pipeline.evaluate
INTERRUPTED = 130  # exit status of a rank that got SIGTERM and has written its checkpoint
_REFUSED = 2  # exit status after one of our errors
_GRACE = 5.0  # seconds that the other ranks have to end by themselves after one has failed


def run(config: RunConfig) -> Metrics:
    """Run the configuration in this process, or in one process per rank; return the metrics.

    Raises:
        CDPOError: the run failed with one of our errors.
        RankError: a rank was killed.
        RuntimeError: a rank raised another exception.
        KeyboardInterrupt: the run got SIGINT or SIGTERM, and has written a checkpoint.
    """
    if config.trainer.processes == 1 or ranks.launched_as_rank():
        with _signal_handler(signal.default_int_handler, signal.SIGTERM):  # treated like Ctrl-C
            return pipeline.run(config)
    if config.trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={config.trainer.num_nodes}: start one process per device on every machine, with torchrun or srun; "
            "see docs/launch.md"
        )
    with tempfile.TemporaryDirectory(prefix="cdpo-") as folder:
        return _run_ranks(config, Path(folder))


def _run_ranks(config: RunConfig, folder: Path) -> Metrics:
    (folder / "config.json").write_text(json.dumps(plain(config)), encoding="utf-8")
    processes = _start_ranks(config.trainer.processes, folder)
    with _forward_signals(processes):
        _wait_for_ranks(processes, folder)
    metrics: Metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def _start_ranks(count: int, folder: Path) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:  # torch's get_free_port may try ::1, where another port is free than at 127.0.0.1
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = os.pathsep.join([str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": code}
    command = [sys.executable, "-m", "cdpo_lightning.launch", str(folder), str(os.getpid()), *sys.argv]
    return [
        # In a session of its own, a rank gets Ctrl-C once, from this process, and not from the terminal too.
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, start_new_session=True)
        for rank in range(count)
    ]


@contextmanager
def _forward_signals(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Forward SIGINT and SIGTERM to the ranks as SIGTERM, with no time limit; kill the ranks that are left at the end."""

    def stop(*_: object) -> None:
        for process in processes:
            process.send_signal(signal.SIGTERM)

    try:
        with _signal_handler(stop, signal.SIGINT, signal.SIGTERM):
            yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def _signal_handler(handler: Callable[..., object], *numbers: signal.Signals) -> Iterator[None]:
    """Handle these signals with `handler`; do nothing outside the main thread, where Python handles none."""
    on_main = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, handler) for number in numbers if on_main}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _wait_for_ranks(processes: list[subprocess.Popen[bytes]], folder: Path) -> None:
    """Wait until all ranks have ended, or until the grace period after the first failure is over.

    Raises:
        CDPOError, RuntimeError: a rank has failed.
        KeyboardInterrupt: the ranks were stopped by a signal.
    """
    deadline = float("inf")
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        if deadline == float("inf") and any(process.poll() for process in processes):
            deadline = time.monotonic() + _GRACE
        time.sleep(0.05)
    failed = {rank: code for rank, process in enumerate(processes) if (code := process.poll())}
    if not failed:
        return
    if all(code == INTERRUPTED for code in failed.values()):
        raise KeyboardInterrupt
    raise _first_failure(failed, folder, len(processes))


def _first_failure(failed: dict[int, int], folder: Path, count: int) -> CDPOError | RuntimeError:
    """Return the error to report: a rank that was killed, else what the first rank to fail has recorded."""
    for rank, code in failed.items():
        if code < 0 and code != -signal.SIGABRT:
            name = signal.Signals(-code).name
            return RankError(
                f"rank {rank} of {count} was killed by {name} (out of memory?), the others were ended; "
                "add resume=true to the same command to continue from the last checkpoint"
            )
    file = folder / "failure.json"
    if not file.exists():
        return RankError(f"rank {min(failed)} of {count} ended with status {failed[min(failed)]}, the others were ended")
    failure = json.loads(file.read_text(encoding="utf-8"))
    if failure["is_ours"]:
        return RankError(failure["text"])
    return RuntimeError(f"rank {failure['rank']} of {count} failed, the others were ended\n{failure['text']}")


def _record_failure(folder: Path, text: str, is_ours: bool) -> None:
    """Record why this rank fails, unless another rank has: later failures are mostly consequences of the first."""
    rank = int(os.environ["RANK"])
    own = folder / f"failure-{rank}.json"
    own.write_text(json.dumps({"rank": rank, "is_ours": is_ours, "text": text}), encoding="utf-8")
    with suppress(FileExistsError):
        os.link(own, folder / "failure.json")


def _exit_with_parent(parent: int) -> None:
    """Exit this process when its parent has ended, also by kill -9; checked in a thread."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Run one rank, in the process that `_start_ranks` has started; return the exit status."""
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    sys.argv = sys.argv[3:]
    _exit_with_parent(parent)
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def crashed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        _record_failure(folder, "".join(traceback.format_exception(kind, error, trace)), is_ours=False)
        os._exit(1)  # without cleaning up: closing the connections of a failed rank may block

    sys.excepthook = crashed
    try:
        metrics = pipeline.run(parse(json.loads((folder / "config.json").read_text(encoding="utf-8"))))
    except CDPOError as error:
        _record_failure(folder, str(error), is_ours=True)
        os._exit(_REFUSED)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    if os.environ["RANK"] == "0":
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
