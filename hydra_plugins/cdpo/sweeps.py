"""Adds `sweeps/` to Hydra's search path, so that Hydra finds `+sweep=NAME` and the launchers for clusters."""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

SWEEPS = Path(__file__).resolve().parent.parent.parent / "sweeps"


class Sweeps(SearchPathPlugin):
    """Adds the folder `sweeps/` of the checkout."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folder last, so that files of the same name in `conf/` win."""
        if SWEEPS.is_dir():
            search_path.append(provider="cdpo-sweeps", path=f"file://{SWEEPS}")
