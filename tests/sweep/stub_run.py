"""run.py with a stub in place of the pipeline: the configuration is composed and checked as usual, the run itself is made up."""

import importlib.util
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def run(config):
    """Write a made-up run of this configuration to its folder."""
    from cdpo_lightning.config import to_yaml
    from cdpo_lightning.report.load import load_metrics
    from tests.report.synthetic import write_one

    folder = Path(config.run_dir)
    write_one(folder, config.policy.beta, config.constraint.c_limit, config.seed, rounds=4)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    return load_metrics(folder)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    launch = types.ModuleType("cdpo_lightning.launch")
    launch.run = launch.check = launch.evaluate = run
    sys.modules["cdpo_lightning.launch"] = launch
    # Not runpy, which sets sys.argv[0] to run.py: the launcher would start real runs.
    spec = importlib.util.spec_from_file_location("__main__", ROOT / "run.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
