"""A run small enough for a test: eight prompts, sixteen responses, a fine-tuned model that stays inside the grammar."""

import copy
import functools
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from cdpo_lightning.config import RunConfig, parse
from tests.e2e.preloaded import Signalled

ROOT = Path(__file__).resolve().parent.parent.parent
GROUPS = ("model", "dataset", "constraint", "method", "trainer", "logger")
TINY = [
    "dataset.prompts=8", "dataset.responses=16", "dataset.pairs_per_prompt=16", "dataset.demonstrations_per_prompt=32",
    "sft.epochs=12", "sft.batch_size=8", "sft.lr=2e-2", "reward.epochs=2", "cost.epochs=8",
    "policy.epochs=2", "policy.refresh=4", "constraint.samples_per_prompt=8", "evaluation.samples_per_prompt=8",
    "method.baselines=[]", "stages=[sft,reward,cost,policy,evaluate]",
]  # fmt: skip


@functools.cache
def _composed(*choices: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", ["run_dir=here", *choices])


@pytest.fixture(scope="session")
def configuration() -> Callable[..., RunConfig]:
    """Return the configuration of these overrides, of which later ones win; each choice of files is composed once per session."""

    def parsed(*overrides: str) -> RunConfig:
        choices = [o for o in overrides if o.partition("=")[0] in GROUPS]
        values = OmegaConf.from_dotlist([o for o in overrides if o not in choices])
        return parse(OmegaConf.merge(copy.deepcopy(_composed(*choices)), values))

    return parsed


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of all tests that do not examine the store itself: SFT and scores are computed once."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def configure(
    store: Path, tmp_path_factory: pytest.TempPathFactory, configuration: Callable[..., RunConfig]
) -> Callable[..., RunConfig]:
    """Return the configuration of the tiny run with these overrides, each in its own folder."""

    def configured(*overrides: str) -> RunConfig:
        folder = tmp_path_factory.mktemp("run") / "run"
        return configuration(*TINY, f"run_dir={folder}", f"artifacts_dir={store}", *overrides)

    return configured


class Process(Signalled):
    """One `python run.py` in a process of its own, forked from one that has done the imports; used like `subprocess.Popen`."""

    def __init__(self, server: socket.socket, folder: Path, arguments: tuple[str, ...]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        request = {"arguments": arguments, "folder": str(folder), "environment": environment}
        self._streams = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 - closed by `communicate`
        reading, writing = os.pipe()
        descriptors = [*(stream.fileno() for stream in self._streams), writing]
        socket.send_fds(server, [json.dumps(request).encode()], descriptors)
        os.close(writing)
        self._answers = os.fdopen(reading)
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, None while the process runs."""
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        """Return the exit status when the process has ended."""
        if self.returncode is None:
            self.returncode = int(self._answers.readline())
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """Return standard output and standard error when the process has ended."""
        self.wait()
        texts = []
        for stream in self._streams:
            stream.seek(0)
            texts.append(stream.read().decode("utf-8"))
            stream.close()
        self._answers.close()
        return texts[0], texts[1]

    def wait_for(self, path: Path) -> None:
        """Return when `path` exists or the process has ended."""
        while not path.exists() and self.poll() is None:
            time.sleep(0.002)

    def children(self) -> list[int]:
        """Return the ids of the processes that this one has started."""
        return [int(number) for number in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]


Start = Callable[..., Process]
PRELOADED = ("cdpo_lightning.launch", "transformers.models.llama.modeling_llama", "deepspeed", "peft", "bitsandbytes")


@pytest.fixture(scope="session")
def start() -> Iterator[Start]:
    """Start `python run.py ARGUMENTS` in a folder without its nine seconds of imports: `start(folder, *arguments)`."""
    installed = [name for name in PRELOADED if find_spec(name.partition(".")[0])]
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, str(Path(__file__).with_name("preloaded.py")), str(its.fileno()), *installed]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    with subprocess.Popen(command, env=environment, pass_fds=[its.fileno()]), ours:
        its.close()
        yield lambda folder, *arguments: Process(ours, folder, arguments)
