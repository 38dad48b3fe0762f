"""The columns of the tables of results: the fields of the CSV file, and the titled columns of pages and Markdown."""

from dataclasses import dataclass

from cdpo_lightning.config.methods import opponents
from cdpo_lightning.report.formatting import name_of

_ENDS = ("", "_ci_low", "_ci_high")
_SAMPLED_KEYS = (
    *("reward_mean", "reward_ci_low", "reward_ci_high", "cost_mean", "cost_ci_low", "cost_ci_high", "cost_std"),
    *("unsafe_rate", "cost_cvar_90", "feasible", "kl_to_reference", "response_tokens_mean", "unfinished_rate"),
)
_PAIRED_KEYS = tuple(
    f"{stem}{end}"
    for other in opponents()
    for stem in (f"minus_{other}/reward", f"minus_{other}/cost", f"minus_{other}/unsafe_rate", f"win_rate_vs_{other}")
    for end in _ENDS
)
_BENCHMARK_KEYS = tuple(
    f"{stem}{end}" for stem in ("refusal/safe_rate", "refusal/unsafe_rate", "truthfulqa/mc1", "truthfulqa/mc2") for end in _ENDS
)
EVAL_KEYS = (*_SAMPLED_KEYS, *_PAIRED_KEYS, *_BENCHMARK_KEYS)
EXACT_KEYS = ("expected_cost", "expected_reward", "kl_to_optimum", "support_mass", "duality_gap")
TRUTH_KEYS = ("expected_cost", "expected_reward")
BUDGET_KEYS = ("trained_tokens", "sampled_tokens", "scorer_forwards", "models_resident", "wall_seconds")
FIELDS = (
    *("who", *EVAL_KEYS, *(f"exact_{key}" for key in EXACT_KEYS), *(f"truth_{key}" for key in TRUTH_KEYS)),
    *(f"budget_{key}" for key in BUDGET_KEYS),
)


@dataclass(frozen=True)
class Column:
    """A titled column: its title, the field that it shows, and the format of the field."""

    title: str
    field: str
    kind: str = "number"  # number: two decimals; fine: three; coarse: one; count; percent; text; interval: number [low, high]


SAMPLED = (
    Column("E[reward] (95 % interval)", "reward_mean", "interval"),
    Column("E[cost] (95 % interval)", "cost_mean", "interval"),
    Column("sd of cost", "cost_std"),
    Column("unsafe (cost > 0)", "unsafe_rate", "percent"),
    Column("cost CVaR90", "cost_cvar_90"),
    Column("feasible", "feasible", "text"),
    Column("KL to reference (nats)", "kl_to_reference", "fine"),
    Column("tokens", "response_tokens_mean", "coarse"),
    Column("unfinished", "unfinished_rate", "percent"),
)
PAIRED = tuple(
    Column(title, field, "interval")
    for other in opponents()
    for title, field in (
        (f"reward - {name_of(other)}", f"minus_{other}/reward"),
        (f"cost - {name_of(other)}", f"minus_{other}/cost"),
        (f"unsafe share - {name_of(other)}", f"minus_{other}/unsafe_rate"),
        (f"reward wins against {name_of(other)}", f"win_rate_vs_{other}"),
    )
)
_BENCHMARKS = (
    Column("refuses safe prompts", "refusal/safe_rate", "interval"),
    Column("refuses unsafe prompts", "refusal/unsafe_rate", "interval"),
    Column("TruthfulQA MC1", "truthfulqa/mc1", "interval"),
    Column("TruthfulQA MC2", "truthfulqa/mc2", "interval"),
)
_EXACT = (
    Column("exact E[cost]", "exact_expected_cost", "fine"),
    Column("exact E[reward]", "exact_expected_reward", "fine"),
    Column("KL to optimum (nats)", "exact_kl_to_optimum", "fine"),
    Column("support mass", "exact_support_mass", "percent"),
    Column("duality gap", "exact_duality_gap", "fine"),
    Column("true E[cost]", "truth_expected_cost", "fine"),
    Column("true E[reward]", "truth_expected_reward", "fine"),
)
_BUDGET = (
    Column("tokens trained on", "budget_trained_tokens", "count"),
    Column("tokens sampled", "budget_sampled_tokens", "count"),
    Column("scorer forwards", "budget_scorer_forwards", "count"),
    Column("models resident", "budget_models_resident", "count"),
    Column("seconds", "budget_wall_seconds", "coarse"),
)
TABLES = (
    ("Measured on samples", SAMPLED),
    ("Differences on the same prompts (paired bootstrap over prompts)", PAIRED),
    ("Over-refusal and TruthfulQA", _BENCHMARKS),
    ("Exact, by enumeration", _EXACT),
    ("What training took", _BUDGET),
)
