import csv
import io
import math
from collections.abc import Iterable

import pytest

from cdpo_lightning.report.formatting import feasible, fixed, percent, telling
from cdpo_lightning.report.tables.columns import FIELDS
from cdpo_lightning.report.tables.export import to_csv, to_markdown, write_csv, write_markdown
from cdpo_lightning.report.tables.results import caption, result_rows


def _read(text: str) -> list[dict]:
    comment, *lines = text.splitlines()
    assert comment.startswith("# ")
    return list(csv.DictReader(io.StringIO("\n".join(lines))))


def _cells(markdown: str, name: str) -> list[list[str]]:
    lines = (line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("| "))
    return [cells[1:] for cells in lines if cells[0] == name]


def _without(metrics: dict, starts: str | Iterable[str]) -> dict:
    return {key: value for key, value in metrics.items() if not key.startswith(starts)}


def test_every_number_of_the_csv_is_the_metric_to_the_last_bit(metrics) -> None:
    written_rows = {row["who"]: row for row in _read(to_csv(metrics))}
    for key, value in metrics.items():
        group, *rest = key.split("/")
        if len(rest) == 2 and rest[1] not in ("prompts", "samples"):
            who, name = rest
            written = written_rows[who][name if group == "eval" else f"{group}_{name}"]
            assert type(value)(written) == value, key


def test_the_columns_never_change(metrics) -> None:
    """A dashboard may join the tables of a whole sweep."""
    for given in (metrics, _without(metrics, ("exact/", "dual/")), {}):
        assert to_csv(given).splitlines()[1] == ",".join(FIELDS)


def test_the_markdown_rounds_and_shows_intervals(metrics) -> None:
    sampled, exact = _cells(to_markdown(metrics), "C-DPO")
    assert sampled[:2] == ["0.70 [0.65, 0.75]", "-0.29 [-0.33, -0.25]"]
    assert sampled[3] == "33.3 %"
    assert sampled[5:7] == ["undecided", "0.033"]
    assert exact == ["-0.286", "–", "0.009", "99.8 %"]


def test_what_was_not_measured_is_a_dash_in_markdown_and_an_empty_cell_in_csv(metrics) -> None:
    del metrics["eval/dpo/cost_mean"], metrics["eval/dpo/unsafe_rate"]
    assert [_cells(to_markdown(metrics), "DPO")[0][at] for at in (1, 3, 7)] == ["–", "–", "–"]
    dpo = next(row for row in _read(to_csv(metrics)) if row["who"] == "dpo")
    assert (dpo["cost_mean"], dpo["unsafe_rate"], dpo["unfinished_rate"]) == ("", "", "")


def test_a_nan_is_a_nan_and_not_missing(metrics) -> None:
    metrics["eval/dpo/cost_std"] = math.nan
    assert _cells(to_markdown(metrics), "DPO")[0][2] == "nan"


def test_without_exact_metrics_there_is_no_exact_table(metrics) -> None:
    text = to_markdown(_without(metrics, "exact/"))
    assert "Measured on samples" in text
    assert "by enumeration" not in text
    assert "optimum" not in text


def test_what_training_took_is_a_table_of_its_own(metrics) -> None:
    metrics |= {"budget/cdpo/trained_tokens": 1234567, "budget/cdpo/models_resident": 4, "budget/cdpo/wall_seconds": 12.34}
    assert _cells(to_markdown(metrics), "C-DPO")[2] == ["1,234,567", "4", "12.3"]
    assert "What training took" in to_markdown(metrics)


def test_the_exact_optimum_is_a_row_of_its_own(metrics) -> None:
    assert _cells(to_markdown(metrics), "optimum (exact)") == [["-0.300", "0.710", "–", "–"]]
    assert result_rows(metrics)[-1]["who"] == "optimum"


def test_the_rows_are_in_the_order_of_the_methods_table(metrics) -> None:
    for who in ("zeta", "ppo_lag", "o_pd_dpo", "pd_dpo", "cdpo_fixed", "alpha"):
        metrics[f"eval/{who}/cost_mean"] = 0.0
    named = ["reference", "sft", "dpo", "cdpo_fixed", "cdpo", "pd_dpo", "o_pd_dpo", "ppo_lag"]
    assert [row["who"] for row in result_rows(metrics)] == [*named, "alpha", "zeta", "optimum"]


def test_only_an_evaluated_policy_is_a_row() -> None:
    assert result_rows({"eval/prompts": 3, "eval/refusals/rate": 0.1, "exact/lambda": 1.0, "eval/cdpo/by/kind": 1.0}) == []


def test_true_scores_are_shown_where_they_were_measured(metrics) -> None:
    metrics["truth/cdpo/expected_cost"] = -0.25
    assert _cells(to_markdown(metrics), "C-DPO")[1][-1] == "-0.250"


@pytest.mark.parametrize(
    ("low", "high", "limit", "expected"),
    [(-1.0, 0.0, 0.0, "yes"), (0.1, 1.0, 0.0, "no"), (0.0, 1.0, 0.0, "undecided"), (-1, 1, None, None)],
)
def test_without_a_recorded_feasibility_the_interval_decides(low, high, limit, expected) -> None:
    metrics = {"eval/dpo/cost_ci_low": low, "eval/dpo/cost_ci_high": high, "dual/c_limit": limit}
    assert feasible(metrics, "dpo") == expected
    assert feasible({**metrics, "eval/dpo/feasible": "no"}, "dpo") == "no"


def test_the_caption_has_convention_limit_and_sampling_size(metrics) -> None:
    text = caption(metrics)
    assert "cost > 0 is harmful" in text
    assert "E[cost] <= C_limit = -0.30" in text
    assert "1600 sampled responses to 200 prompts for each row" in text
    assert "1600 to 2000 sampled" in caption(metrics | {"eval/dpo/samples": 2000})
    assert "the sampling size was not recorded" in caption({})


def test_a_name_cannot_break_the_markdown() -> None:
    text = to_markdown({"eval/a|b\nc/cost_mean": 1.0})
    assert "| a\\|b c | – | 1.00 |" in text


def test_a_run_without_an_evaluation_says_so() -> None:
    assert "No policy was evaluated" in to_markdown({})


def test_the_files_hold_the_tables(run, tmp_path) -> None:
    write_markdown(run, tmp_path / "table.md")
    write_csv(run, tmp_path / "table.csv")
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == to_markdown(run.metrics)
    assert (tmp_path / "table.csv").read_text(encoding="utf-8") == to_csv(run.metrics)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0.0 %"), (1e-6, "<0.1 %"), (0.021, "2.1 %"), (0.99999, ">99.9 %"), (1.0, "100.0 %"), (None, "–")],
)
def test_a_share_is_never_rounded_to_0_or_1(share, text) -> None:
    assert percent(share) == text


def test_zero_has_no_sign_and_a_small_limit_keeps_its_digits() -> None:
    assert fixed(-0.001) == "0.00"
    assert fixed(-0.3) == "-0.30"
    assert telling(0.00123) == "0.0012"
    assert telling(-1e-17) == "0.00"
