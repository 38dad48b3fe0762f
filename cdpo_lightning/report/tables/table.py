"""The final table: one row per method, as Markdown for people and as CSV for programs."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdpo_lightning.report.formatting import (
    CONVENTION,
    MISSING,
    feasible,
    finite,
    fixed,
    name_of,
    number,
    percent,
    telling,
    whos,
)
from cdpo_lightning.report.load import Run
from cdpo_lightning.report.tables.categories import HEADING, category_table
from cdpo_lightning.report.write import write_text

SAMPLED_KEYS = (
    *("reward_mean", "reward_ci_low", "reward_ci_high", "cost_mean", "cost_ci_low", "cost_ci_high", "cost_std"),
    *("unsafe_rate", "cost_cvar_90", "feasible", "kl_to_reference", "response_tokens_mean", "unfinished_rate"),
)
OTHERS = {"sft": "SFT", "dpo": "DPO", "reference": "reference", "policy_1": "policy_1"}  # whom everyone is compared with
_ENDS = ("", "_ci_low", "_ci_high")
PAIRED_KEYS = tuple(
    f"{stem}{end}"
    for other in OTHERS
    for stem in (f"minus_{other}/reward", f"minus_{other}/cost", f"minus_{other}/unsafe_rate", f"win_rate_vs_{other}")
    for end in _ENDS
)
SUITE_KEYS = tuple(
    f"{s}{e}" for s in ("refusal/safe_rate", "refusal/unsafe_rate", "truthfulqa/mc1", "truthfulqa/mc2") for e in _ENDS
)
EXACT_KEYS = ("expected_cost", "expected_reward", "kl_to_optimum", "support_mass", "duality_gap")
TRUTH_KEYS = ("expected_cost", "expected_reward")
EVAL_KEYS = (*SAMPLED_KEYS, *PAIRED_KEYS, *SUITE_KEYS)
BUDGET_KEYS = ("trained_tokens", "sampled_tokens", "scorer_forwards", "models_resident", "wall_seconds")
FIELDS = (
    *("who", *EVAL_KEYS, *(f"exact_{key}" for key in EXACT_KEYS), *(f"truth_{key}" for key in TRUTH_KEYS)),
    *(f"budget_{key}" for key in BUDGET_KEYS),
)


@dataclass(frozen=True)
class Column:
    """One column for people: its title, the field it shows and sorts by, and how the field is written."""

    title: str
    field: str
    kind: str = "number"


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
    column
    for other, name in OTHERS.items()
    for column in (
        Column(f"reward - {name}", f"minus_{other}/reward", "interval"),
        Column(f"cost - {name}", f"minus_{other}/cost", "interval"),
        Column(f"unsafe share - {name}", f"minus_{other}/unsafe_rate", "interval"),
        Column(f"reward wins against {name}", f"win_rate_vs_{other}", "interval"),
    )
)
SUITE = (
    Column("refuses safe prompts", "refusal/safe_rate", "interval"),
    Column("refuses unsafe prompts", "refusal/unsafe_rate", "interval"),
    Column("TruthfulQA MC1", "truthfulqa/mc1", "interval"),
    Column("TruthfulQA MC2", "truthfulqa/mc2", "interval"),
)
EXACT = (
    Column("exact E[cost]", "exact_expected_cost", "fine"),
    Column("exact E[reward]", "exact_expected_reward", "fine"),
    Column("KL to optimum (nats)", "exact_kl_to_optimum", "fine"),
    Column("support mass", "exact_support_mass", "percent"),
    Column("duality gap", "exact_duality_gap", "fine"),
    Column("true E[cost]", "truth_expected_cost", "fine"),
    Column("true E[reward]", "truth_expected_reward", "fine"),
)
BUDGET = (
    Column("tokens trained on", "budget_trained_tokens", "count"),
    Column("tokens sampled", "budget_sampled_tokens", "count"),
    Column("scorer forwards", "budget_scorer_forwards", "count"),
    Column("models resident", "budget_models_resident", "count"),
    Column("seconds", "budget_wall_seconds", "coarse"),
)


def rows(metrics: Mapping) -> list[dict]:
    """One mapping per method with the keys of `FIELDS`, None where not measured; the exact optimum last."""
    table = [_row(metrics, who) for who in whos(metrics)]
    optimum = {f"exact_{key}": number(metrics, f"exact/{key}") for key in TRUTH_KEYS}
    if any(value is not None for value in optimum.values()):
        table.append({**dict.fromkeys(FIELDS), "who": "optimum", **optimum})
    return table


def _row(metrics: Mapping, who: str) -> dict:
    sampled = {key: number(metrics, f"eval/{who}/{key}") for key in EVAL_KEYS}
    exact = {f"exact_{key}": number(metrics, f"exact/{who}/{key}") for key in EXACT_KEYS}
    truth = {f"truth_{key}": number(metrics, f"truth/{who}/{key}") for key in TRUTH_KEYS}
    budget = {f"budget_{key}": number(metrics, f"budget/{who}/{key}") for key in BUDGET_KEYS}
    return {"who": who, **sampled, "feasible": feasible(metrics, who), **exact, **truth, **budget}


def cell(row: Mapping, column: Column) -> str:
    """The field as people read it."""
    value = row[column.field]
    if column.kind == "text":
        return MISSING if value is None else str(value)
    if column.kind == "percent":
        return percent(value)
    if column.kind == "count":
        return MISSING if value is None else f"{value:,.0f}"
    written = fixed(value, {"fine": 3, "coarse": 1}.get(column.kind, 2))
    return written + _interval(row, column.field) if column.kind == "interval" else written


def _interval(row: Mapping, field: str) -> str:
    low, high = (row.get(field.removesuffix("_mean") + end) for end in ("_ci_low", "_ci_high"))
    return "" if None in (row[field], low, high) else f" [{fixed(low)}, {fixed(high)}]"


def tables(table: Sequence[Mapping]) -> list[tuple[str, tuple[Column, ...], list[Mapping]]]:
    """(heading, columns, rows) of what is there to show: columns and rows without a single value are left out."""
    parts = (
        ("Measured on samples", SAMPLED),
        ("Differences on the same prompts (paired bootstrap over prompts)", PAIRED),
        ("Over-refusal and TruthfulQA", SUITE),
        ("Exact, by enumeration", EXACT),
        ("What training took", BUDGET),
    )
    shown = [(heading, *_filled(columns, table)) for heading, columns in parts]
    return [part for part in shown if part[1]]


def _filled(columns: Sequence[Column], table: Sequence[Mapping]) -> tuple[tuple[Column, ...], list[Mapping]]:
    kept = tuple(column for column in columns if any(row[column.field] is not None for row in table))
    # Sampled columns all stay, so that a dash says "not measured"; the exact ones exist in one world only, budgets not of all.
    kept = tuple(columns) if kept and columns is SAMPLED else kept
    return kept, [row for row in table if any(row[column.field] is not None for column in kept)]


def caption(metrics: Mapping) -> str:
    """The sign convention, the limit, the intervals and how many samples stand behind the figures."""
    limit = finite(metrics, "dual/c_limit")
    parts = [
        CONVENTION + (f" = {telling(limit)}" if limit is not None else ""),
        "intervals are 95 %, clustered by prompt",
    ]
    return "; ".join([*parts, _sizes(metrics)]) + "."


def _sizes(metrics: Mapping) -> str:
    prompts, samples = (_span(metrics, key) for key in ("prompts", "samples"))
    if not prompts or not samples:
        return "the sampling size was not recorded"
    return f"{samples} sampled responses to {prompts} prompts for each row"


def _span(metrics: Mapping, key: str) -> str:
    """The smallest and the largest of the methods' sizes, once where they agree."""
    sizes = [size for who in whos(metrics) if (size := finite(metrics, f"eval/{who}/{key}")) is not None]
    return " to ".join(f"{size:.0f}" for size in sorted({min(sizes), max(sizes)})) if sizes else ""


def to_markdown(metrics: Mapping) -> str:
    """The caption and the tables, GitHub-flavoured."""
    parts = [_markdown_part(*part) for part in tables(rows(metrics))]
    parts += _markdown_categories(metrics)
    return "\n\n".join([caption(metrics), *(parts or ["Nobody was evaluated in this run."])]) + "\n"


def _markdown_part(heading: str, columns: Sequence[Column], table: Sequence[Mapping]) -> str:
    head = _line(["who", *(column.title for column in columns)])
    rule = _line([":--", *(":-:" if column.kind == "text" else "--:" for column in columns)])
    body = [_line([name_of(row["who"]), *(cell(row, column) for column in columns)]) for row in table]
    return "\n".join([f"**{heading}**", "", head, rule, *body])


def _markdown_categories(metrics: Mapping) -> list[str]:
    titles, result = category_table(metrics)
    if not result:
        return []
    body = [_line([row.name, fixed(row.prompts, 0), *map(percent, row.unsafe)]) for row in result]
    return ["\n".join([f"**{HEADING}**", "", _line(titles), _line([":--", *["--:"] * (len(titles) - 1)]), *body])]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def to_csv(metrics: Mapping) -> str:
    """`#` and the caption, then `FIELDS` in full precision; an empty cell was not measured."""
    text = io.StringIO()
    text.write(f"# {caption(metrics)}\n")
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(metrics))
    return text.getvalue()


def write_markdown(run: Run, path: Path) -> None:
    """`to_markdown` of the run, written whole."""
    write_text(Path(path), to_markdown(run.metrics))


def write_csv(run: Run, path: Path) -> None:
    """`to_csv` of the run, written whole."""
    write_text(Path(path), to_csv(run.metrics))
