"""The door: compose the configuration, check it, run it, return the sweep's objective."""

import os
import sys

import hydra
from omegaconf import DictConfig

from cdpo_lightning.config import parse
from cdpo_lightning.config.cli_errors import COMPOSING, interrupted, refuse, sentence, status
from cdpo_lightning.errors import CDPOError
from cdpo_lightning.sweep.objective import objective


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float | None:
    """One run or one job of a sweep; the sweep goes on after a job that is refused, whose objective is nan."""
    try:
        parsed = parse(config)
        from cdpo_lightning.launch import check, evaluate, run  # takes seconds: a typing error is answered at once

        return objective(parsed, {"run": run, "evaluate": evaluate, "check": check}[parsed.mode](parsed))
    except CDPOError as error:
        return refuse(str(error))


def door() -> int:
    """Exit status: 0 done, 2 the user's mistake on one line, 130 interrupted; our own faults keep their traceback."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints tracebacks of its own and exits with 1
    try:
        main()
    except COMPOSING as error:
        refuse(sentence(error))
    except KeyboardInterrupt as error:
        return interrupted(error)
    return status()


if __name__ == "__main__":
    sys.exit(door())
