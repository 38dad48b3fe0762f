"""The command line: compose the configuration, check it, run it, return the sweep's objective."""

import os
import sys

import hydra
from omegaconf import DictConfig

from cdpo_lightning.config import cli_errors, parse
from cdpo_lightning.errors import CDPOError
from cdpo_lightning.sweep.objective import objective


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float | None:
    """Do one run, or one job of a sweep; the sweep goes on after a job that is refused, whose objective is nan."""
    try:
        parsed = parse(config)
        from cdpo_lightning.launch import check, evaluate, run  # takes seconds: a wrong key is reported before

        return objective(parsed, {"run": run, "evaluate": evaluate, "check": check}[parsed.mode](parsed))
    except CDPOError as error:
        return cli_errors.current().refuse(str(error))


def run_cli() -> int:
    """Return the exit status: 0 done, 2 a mistake of the user, 130 interrupted; a bug of ours keeps its traceback."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints tracebacks of its own and exits with 1
    status = cli_errors.start()
    try:
        main()
    except cli_errors.COMPOSITION_ERRORS as error:
        status.refuse(cli_errors.explain(error))
    except KeyboardInterrupt as error:
        return cli_errors.report_interrupt(error)
    return status.code()


if __name__ == "__main__":
    sys.exit(run_cli())
