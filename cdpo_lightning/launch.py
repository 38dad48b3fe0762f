"""Starts the ranks of a run on this machine and watches over them; one process, or one that was started elsewhere, just runs.

Each rank is a process of its own that reads the configuration as it was resolved here, so all have the same folder and a sweep can
run jobs of several ranks. The first failure ends all ranks and is the one that is told; none outlives the process that started it.
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
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from cdpo_lightning import ranks
from cdpo_lightning.config import RunConfig, parse, plain
from cdpo_lightning.errors import CDPOError, ConfigError, RankError
from cdpo_lightning.evaluation.metrics import Metrics
from cdpo_lightning.pipeline import run as pipeline

check, evaluate = pipeline.check, pipeline.evaluate
INTERRUPTED = 130  # exit status of a rank that was told to stop and has written its checkpoint
_REFUSED = 2
_GRACE = 5.0  # seconds for the other ranks to end by themselves after one has failed


def run(config: RunConfig) -> Metrics:
    """One run, in this process or in as many as `trainer` asks for; what it found."""
    if config.trainer.processes == 1 or ranks.launched_as_rank():
        with _on_signals(signal.default_int_handler, signal.SIGTERM):  # told to end: as by Ctrl-C
            return pipeline.run(config)
    if config.trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={config.trainer.num_nodes}: start one process per device on every machine, with torchrun or srun; "
            "see docs/launch.md"
        )
    with tempfile.TemporaryDirectory(prefix="cdpo-") as folder:
        return _watched(config, Path(folder))


def _watched(config: RunConfig, folder: Path) -> Metrics:
    (folder / "config.json").write_text(json.dumps(plain(config)), encoding="utf-8")
    processes = _start(config.trainer.processes, folder)
    with _passed_on(processes):
        _wait(processes, folder)
    result: Metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return result


def _start(count: int, folder: Path) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = os.pathsep.join([str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": code}
    command = [sys.executable, "-m", "cdpo_lightning.launch", str(folder), str(os.getpid()), *sys.argv]
    return [
        # A session of its own: Ctrl-C reaches the ranks through us alone, and once.
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(n), "LOCAL_RANK": str(n)}, start_new_session=True)
        for n in range(count)
    ]


@contextmanager
def _passed_on(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Passes SIGINT and SIGTERM on to the ranks, which end in their own time; whatever happens, none is left."""

    def stop(*_: object) -> None:
        for process in processes:
            process.send_signal(signal.SIGTERM)

    try:
        with _on_signals(stop, signal.SIGINT, signal.SIGTERM):
            yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def _on_signals(handler: Callable[..., object], *numbers: signal.Signals) -> Iterator[None]:
    """`handler` for these signals, where they can be handled: in the main thread."""
    on_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if on_main}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _wait(processes: list[subprocess.Popen[bytes]], folder: Path) -> None:
    """Returns when all ranks have done their work.

    Raises:
        RankError: one has failed.
        KeyboardInterrupt: they were told to stop.
    """
    while any(process.poll() is None for process in processes) and not any(process.poll() for process in processes):
        time.sleep(0.05)
    deadline = time.monotonic() + _GRACE
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    codes = [process.poll() for process in processes]
    failed = {rank: code for rank, code in enumerate(codes) if code}
    if not failed:
        return
    if all(code == INTERRUPTED for code in failed.values()):
        raise KeyboardInterrupt
    raise _failure(failed, folder, len(processes))


def _failure(failed: dict[int, int], folder: Path, count: int) -> CDPOError | RuntimeError:
    """The cause, in one message: a rank that was killed, else what the first one to fail has said."""
    for rank, code in failed.items():
        if code < 0 and code != -signal.SIGABRT:
            how = signal.Signals(-code).name
            return RankError(
                f"rank {rank} of {count} was killed by {how} (out of memory?), the others were ended; "
                "the same command with resume=true goes on from the last checkpoint"
            )
    file = folder / "failure.json"
    if not file.exists():
        return RankError(f"rank {min(failed)} of {count} ended with status {failed[min(failed)]}, the others were ended")
    message = json.loads(file.read_text(encoding="utf-8"))
    if message["refused"]:
        return RankError(message["text"])
    return RuntimeError(f"rank {message['rank']} of {count} failed, the others were ended\n{message['text']}")


def _tell(folder: Path, refused: bool, text: str) -> None:
    """Notes why this rank fails, unless another one has: what follows from the first failure is not its cause."""
    rank = int(os.environ["RANK"])
    part = folder / f"failure-{rank}"
    part.write_text(json.dumps({"rank": rank, "refused": refused, "text": text}), encoding="utf-8")
    try:
        os.link(part, folder / "failure.json")
    except FileExistsError:
        part.unlink()


def _end_with(parent: int) -> None:
    """Ends this process when the one that started it is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """One rank: its exit status."""
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    sys.argv = sys.argv[3:]
    _end_with(parent)
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def crashed(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        _tell(folder, False, "".join(traceback.format_exception(kind, error, where)))
        os._exit(1)  # at once: the connections of a failing rank may not close in order

    sys.excepthook = crashed
    try:
        metrics = pipeline.run(parse(json.loads((folder / "config.json").read_text(encoding="utf-8"))))
    except CDPOError as error:
        _tell(folder, True, str(error))
        os._exit(_REFUSED)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    if os.environ["RANK"] == "0":
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
