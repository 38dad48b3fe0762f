"""`hydra/sweeper=search`: a search with Optuna that maximises E[reward] among the jobs that meet the limit.

Hydra's own plugin for Optuna needs a release before 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from cdpo_lightning import compat
from cdpo_lightning.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

_VIOLATION = "violation"  # E[cost] - C_limit of a trial


class SearchSweeper(Sweeper):
    """Searches over the overrides with several values or an interval; the other overrides are fixed."""

    def __init__(self, trials: int, side_by_side: int, seed: int) -> None:
        self._trials, self._side_by_side, self._seed = trials, side_by_side, seed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store what Hydra passes before the sweep."""
        self._context, self._config = hydra_context, config
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until `trials` have ended, starting with those that an interrupted search left unfinished.

        Raises:
            ConfigError: no override has several values, one cannot be searched, or Optuna is not installed.
        """
        overrides = OverridesParser.create(config_loader=self._context.config_loader).parse_overrides(arguments)
        space = {override.get_key_element(): distribution(override) for override in overrides if override.is_sweep_override()}
        fixed = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
        if not space:
            raise ConfigError(
                "hydra/sweeper=search: nothing to search; give a key values or an interval, policy.beta=interval(0.1,1)"
            )
        folder = Path(str(self._config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self._config, folder / "multirun.yaml")
        study = open_study(folder / "search.log", self._seed)
        number = 0
        while batch := self._next(study, space):
            jobs = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in batch]
            returned = self._launcher.launch(jobs, initial_job_idx=number)
            number += len(jobs)
            for trial, job in zip(batch, returned, strict=True):
                tell(study, trial, job)
        print(best_trial_line(study), flush=True)

    def _next(self, study: Study, space: dict[str, BaseDistribution]) -> list[FrozenTrial]:
        """Return the trials of the next launch; none if enough have ended."""
        from optuna.trial import TrialState

        left = self._trials - len([t for t in study.get_trials(deepcopy=False) if t.state.is_finished()])
        unfinished = study.get_trials(states=(TrialState.RUNNING,))
        count = min(self._side_by_side, left)
        for _ in range(count - len(unfinished)):
            study.ask(space)
        return study.get_trials(states=(TrialState.RUNNING,))[:count]


def distribution(override: Override) -> BaseDistribution:
    """Return Optuna's distribution of an override: values, a range of integers, or an interval (log-uniform by `tag(log, ...)`).

    Raises:
        ConfigError: Optuna has no such distribution.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        return FloatDistribution(float(value.start), float(value.end), log="log" in value.tags)
    if isinstance(value, RangeSweep) and all(isinstance(part, int) for part in (value.start, value.stop, value.step)):
        return IntDistribution(int(value.start or 0), int(value.stop or 0) - 1, step=int(value.step))
    if isinstance(value, ChoiceSweep | RangeSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    raise ConfigError(f"{override.input_line}: cannot be searched; write values a,b or interval(low,high)")


def open_study(path: Path, seed: int) -> Study:
    """Return the study that is stored in a file, new or to be continued.

    Raises:
        ConfigError: Optuna is not installed.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise ConfigError("hydra/sweeper=search: optuna is not installed; try: pip install -e '.[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(path)))
    sampler = optuna.samplers.TPESampler(seed=seed)
    return optuna.create_study(study_name="search", storage=storage, sampler=sampler, direction="maximize", load_if_exists=True)


def tell(study: Study, trial: FrozenTrial, job: JobReturn) -> None:
    """Report the result of a trial to Optuna: E[reward] and the violation of the limit, or that it failed."""
    from optuna.trial import Trial, TrialState

    from cdpo_lightning.report.load import load_metrics

    folder = Path(str(job.working_dir))
    metrics = load_metrics(folder) if (folder / "metrics.json").is_file() else {}
    who = metrics.get("run/method")
    reward, cost, limit = (metrics.get(key) for key in (f"eval/{who}/reward_mean", f"eval/{who}/cost_mean", "dual/c_limit"))
    if reward is None or cost is None or limit is None:
        study.tell(trial.number, state=TrialState.FAIL)
        return
    open_trial = Trial(study, compat.trial_id(trial))
    open_trial.set_constraint(_VIOLATION, cost - limit)  # the sampler prefers settings that meet it
    open_trial.set_user_attr(_VIOLATION, cost - limit)
    open_trial.set_user_attr("folder", str(folder))
    study.tell(open_trial, reward)


def best_trial_line(study: Study) -> str:
    """Return one line on the best trial that meets the limit."""
    from optuna.trial import TrialState

    done: Sequence[FrozenTrial] = study.get_trials(states=(TrialState.COMPLETE,))
    feasible = [trial for trial in done if trial.user_attrs[_VIOLATION] <= 0]
    if not feasible:
        return f"search: none of {len(done)} trials met the limit"
    best = max(feasible, key=lambda trial: trial.value or 0.0)
    values = " ".join(f"{key}={value}" for key, value in best.params.items())
    return (
        f"search: the best of {len(feasible)} that met the limit: {values}, E[reward] {best.value:.3f}, {best.user_attrs['folder']}"
    )
