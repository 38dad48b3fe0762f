"""`python -m cdpo_lightning.report DIR [DIR ...]`: the report of a run, or one page over all the runs below."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cdpo_lightning.errors import CDPOError
from cdpo_lightning.report import build, find_runs
from cdpo_lightning.report.load import load_summary
from cdpo_lightning.report.sweep.build import build_sweep


def main(arguments: Sequence[str] | None = None) -> int:
    """Build every report that can be built; 2 if any could not, with one line on standard error for each."""
    parser = argparse.ArgumentParser(prog="python -m cdpo_lightning.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a run's folder, or one that holds runs")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the page over all runs goes; else report/ in their common folder"
    )
    requested = parser.parse_args(arguments)
    # One broken run of a sweep must not cost the others their report.
    status, runs = 0, []
    for folder in requested.folders:
        try:
            result = find_runs(folder)
        except CDPOError as error:
            status = _complain(error)
            continue
        built = [run for run in result if _built(run, anew=run == folder)]
        status = status if built == result else 2
        runs += built
    alone = len({run.resolve() for run in runs}) == 1 and runs[0] in requested.folders and not requested.out
    return status if alone or not runs else max(status, _build_all(requested.folders, runs, requested.out))


def _built(run: Path, anew: bool) -> bool:
    """Whether the run can be read. Its own report is made where it was asked for by name, and where there is none."""
    try:
        if anew or not (run / "report" / "index.html").is_file():
            print(build(run))
        else:
            load_summary(run)
    except CDPOError as error:
        _complain(error)
        return False
    return True


def _build_all(folders: Sequence[Path], runs: Sequence[Path], out: Path | None) -> int:
    common = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    target = out or (folders[0] if len(folders) == 1 else common) / "report"
    try:
        print(build_sweep(folders, target, only=runs))
    except CDPOError as error:
        return _complain(error)
    return 0


def _complain(error: CDPOError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
