"""The screen of a run: the stages as they end, the dual's rounds, the table and the verdict. Quiet on other ranks."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import modeling_gguf_pytorch_utils as gguf
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from cdpo_lightning import ranks, report
from cdpo_lightning.config import RunConfig
from cdpo_lightning.data.corpus import Corpus

_SHOWN = {
    "sft/loss": "held-out loss {:.3f} nats a token",
    "reward/pair_accuracy": "held-out pair accuracy {:.1%}",
    "cost/pair_accuracy": "held-out pair accuracy {:.1%}",
    "cost/auroc": "AUROC {:.3f}",
    "lambda": "lambda {:.3f}",
}


def quiet_libraries() -> None:
    """Silences what other libraries print in the middle of a run: progress bars of saving and loading, DeepSpeed's guess.

    To save a model, transformers asks accelerate, which imports DeepSpeed where it is installed; unless it is told, that warns that
    there is no GPU.
    """
    disable_progress_bar()
    gguf.tqdm = partial(gguf.tqdm, disable=True)  # this one does not ask whether bars are wanted
    warnings.filterwarnings("ignore", message=".torch.distributed.*. is deprecated", category=FutureWarning)  # by DeepSpeed
    set_verbosity_error()  # the table of weights that a part of a model leaves out; what is missing is refused by us
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


class Screen:
    """Prints one line as each stage ends."""

    def __init__(self, config: RunConfig) -> None:
        self.console = Console(quiet=not ranks.is_first(), highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = max(self.console.width, 100)  # of a file it is 80: too narrow for the final table
        self.progress = self.console.is_terminal and ranks.is_first()
        self._start = time.perf_counter()
        c = config.constraint
        goal = f"E[cost] <= {c.c_limit:g}" if c.kind == "dual" else f"constraint {c.kind}"
        self.say(f"{config.name}: constrained DPO, {goal}, beta {config.policy.beta:g}, seed {config.seed}")
        self.say("cost > 0 is harmful; lambda in reward per cost")

    def say(self, text: str) -> None:
        """Prints a line as it is."""
        report.say(text, self.console)

    def data(self, corpus: Corpus) -> None:
        """What the audit found, and the licence and content notices, once."""
        for notice in corpus.notices:
            self.say(f"note: {notice}")
        counts = {k.removeprefix("data/"): v for k, v in corpus.metrics.items() if k.startswith("data/") and v}
        self.say(f"{'data':<10} " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Times a stage; what it is told is printed when it ends."""
        start, facts = time.perf_counter(), {}  # type: ignore[var-annotated]
        yield facts.update
        shown = [_SHOWN.get(k, f"{k} {{:,}}").format(v) for k, v in facts.items() if k in _SHOWN or "/" not in k]
        self.say(f"{name:<10} {', '.join(shown):<66} {time.perf_counter() - start:6.1f} s")

    def round(self, row: Mapping[str, Any]) -> None:
        """One line per dual round."""
        self.say(f"  {row['who']:<8} {report.dual_round_line(row)}")

    def end(self, metrics: Mapping[str, Any], folder: Path) -> None:
        """The final table, the verdict and where everything is."""
        report.final_table(metrics, self.console)
        self.say(report.verdict(metrics))
        page = folder / "report" / "index.html"
        self.say(f"{page if page.exists() else folder}   ({time.perf_counter() - self._start:.0f} s)")
