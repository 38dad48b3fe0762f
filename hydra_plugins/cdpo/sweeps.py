"""Puts the checkout's `sweeps/` beside `conf/`, so that `+sweep=NAME` and the launchers for clusters are found."""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

SWEEPS = Path(__file__).resolve().parent.parent.parent / "sweeps"


class Sweeps(SearchPathPlugin):
    """`sweeps/` as a part of the configuration."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends the folder, last: what `conf/` has comes first."""
        if SWEEPS.is_dir():
            search_path.append(provider="cdpo-sweeps", path=f"file://{SWEEPS}")
