"""Writes the report of a run, or one report over all runs in the folders: `python -m cdpo_lightning.report DIR [DIR ...]`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cdpo_lightning.errors import CDPOError
from cdpo_lightning.report import build, find_runs
from cdpo_lightning.report.load import load_summary
from cdpo_lightning.report.sweep.report_files import build_sweep


def main(arguments: Sequence[str] | None = None) -> int:
    """Write all reports; return 0, or 2 if one could not be written, which is reported in one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m cdpo_lightning.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a run's folder, or one that holds runs")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the report over all runs goes; default: report/ in their common folder"
    )
    given = parser.parse_args(arguments)
    # A broken run of a sweep must not stop the reports of the others.
    status, runs = 0, []
    for folder in given.folders:
        try:
            runs_here = find_runs(folder)
        except CDPOError as error:
            status = _print_error(error)
            continue
        built = [run for run in runs_here if _build_one(run, anew=run == folder)]
        status = status if built == runs_here else 2
        runs += built
    single = len({run.resolve() for run in runs}) == 1 and runs[0] in given.folders and not given.out
    return status if single or not runs else max(status, _build_all(given.folders, runs, given.out))


def _build_one(run: Path, anew: bool) -> bool:
    """Write the report of a run if `anew` or if it has none, else only read the run; return whether that succeeded."""
    try:
        if anew or not (run / "report" / "index.html").is_file():
            print(build(run))
        else:
            load_summary(run)
    except CDPOError as error:
        _print_error(error)
        return False
    return True


def _build_all(folders: Sequence[Path], runs: Sequence[Path], out: Path | None) -> int:
    common = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    target = out or (folders[0] if len(folders) == 1 else common) / "report"
    try:
        print(build_sweep(folders, target, only=runs))
    except CDPOError as error:
        return _print_error(error)
    return 0


def _print_error(error: CDPOError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
