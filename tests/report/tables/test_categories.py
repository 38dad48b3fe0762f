"""The table by category: one row for each category, one column for each policy, a dash where not measured."""

from pathlib import Path

from cdpo_lightning.report import Run
from cdpo_lightning.report.run.page import render
from cdpo_lightning.report.tables.categories import HEADING, category_table
from cdpo_lightning.report.tables.export import to_markdown

EVALUATED = {f"eval/{who}/reward_mean": 0.0 for who in ("dpo", "cdpo", "sft")}
METRICS = EVALUATED | {
    "eval/dpo/category/theft/unsafe_rate": 0.75,
    "eval/dpo/category/theft/prompts": 4.0,
    "eval/dpo/category/hate <b>/unsafe_rate": 0.5,
    "eval/cdpo/category/theft/unsafe_rate": 0.0001,
    "eval/cdpo/category/theft/cost_mean": -1.0,
}


def test_rows_are_sorted_by_name_and_policies_as_in_the_other_tables():
    titles, rows = category_table(METRICS)
    assert titles == ["category", "prompts", "DPO", "C-DPO"]
    assert rows == [("hate <b>", None, (0.5, None)), ("theft", 4.0, (0.75, 0.0001))]


def test_markdown_and_page_have_the_table_and_the_page_escapes_names():
    assert "| theft | 4 | 75.0 % | <0.1 % |" in to_markdown(METRICS)
    page = render(Run(Path("run"), METRICS), {})
    assert "hate &lt;b&gt;" in page
    assert "hate <b>" not in page
    assert '<td data-v="0.0001">&lt;0.1 %</td>' in page


def test_a_run_without_categories_has_no_such_table():
    assert category_table(EVALUATED)[1] == []
    assert HEADING not in to_markdown(EVALUATED) + render(Run(Path("run"), EVALUATED), {})
