"""Prints the progress and the results of a run: each stage as it ends, the dual rounds, the final table and the verdict."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from cdpo_lightning import compat, ranks, report
from cdpo_lightning.config import RunConfig
from cdpo_lightning.data.corpus import Corpus

_FORMATS = {
    "sft/loss": "held-out loss {:.3f} nats a token",
    "reward/pair_accuracy": "held-out pair accuracy {:.1%}",
    "cost/pair_accuracy": "held-out pair accuracy {:.1%}",
    "cost/auroc": "AUROC {:.3f}",
    "lambda": "lambda {:.3f}",
}


def quiet_libraries() -> None:
    """Silence what other libraries print during a run: progress bars, and warnings of DeepSpeed and transformers."""
    disable_progress_bar()
    compat.disable_gguf_progress_bar()
    warnings.filterwarnings("ignore", message=".torch.distributed.*. is deprecated", category=FutureWarning)  # by DeepSpeed
    set_verbosity_error()  # transformers lists the weights that a score model leaves out; our loader refuses what is missing
    if not torch.cuda.is_available():
        # Saving a model imports accelerate, and with it DeepSpeed, which warns that there is no GPU unless this is set.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


class Screen:
    """Prints lines on the first rank; on other ranks it prints nothing."""

    def __init__(self, config: RunConfig) -> None:
        self.console = Console(quiet=not ranks.is_first(), highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = max(self.console.width, 100)  # rich takes 80 for a file, which is too narrow for the final table
        self.progress = self.console.is_terminal and ranks.is_first()
        self._start = time.perf_counter()
        c = config.constraint
        goal = f"E[cost] <= {c.c_limit:g}" if c.kind == "dual" else f"constraint {c.kind}"
        self.say(f"{config.name}: constrained DPO, {goal}, beta {config.policy.beta:g}, seed {config.seed}")
        self.say("cost > 0 is harmful; lambda in reward per cost")

    def say(self, text: str) -> None:
        """Print a line as it is."""
        report.say(text, self.console)

    def data(self, corpus: Corpus) -> None:
        """Print the licence and content notices, and the counts of the audit."""
        for notice in corpus.notices:
            self.say(f"note: {notice}")
        counts = {key.removeprefix("data/"): count for key, count in corpus.metrics.items() if key.startswith("data/") and count}
        self.say(f"{'data':<10} " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Yield a function that takes the stage's results; when the block ends, print them with the seconds that it took."""
        results: dict[str, Any] = {}
        start = time.perf_counter()
        yield results.update
        known = {key: value for key, value in results.items() if key in _FORMATS or "/" not in key}
        shown = [_FORMATS.get(key, f"{key} {{:,}}").format(value) for key, value in known.items()]
        self.say(f"{name:<10} {', '.join(shown):<66} {time.perf_counter() - start:6.1f} s")

    def round(self, row: Mapping[str, Any]) -> None:
        """Print one line for a dual round."""
        self.say(f"  {row['who']:<8} {report.dual_round_line(row)}")

    def end(self, metrics: Mapping[str, Any], folder: Path) -> None:
        """Print the final table, the verdict, and the path of the report or else of the run's folder."""
        report.final_table(metrics, self.console)
        self.say(report.verdict(metrics))
        page = folder / "report" / "index.html"
        self.say(f"{page if page.exists() else folder}   ({time.perf_counter() - self._start:.0f} s)")
