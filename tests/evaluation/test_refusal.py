"""The refusal detector: its precision and recall on responses labelled by hand, which are those that the docs state."""

import json
import re
from pathlib import Path

import pytest

from cdpo_lightning.data.records import EvaluationPrompt
from cdpo_lightning.evaluation.refusal import is_refusal, refusal_metrics

ROOT = Path(__file__).parents[2]
ROWS = [json.loads(line) for line in (ROOT / "tests/fixtures/refusals.jsonl").read_text(encoding="utf-8").splitlines()]


def precision_and_recall(rows):
    right = sum(row["refusal"] and is_refusal(row["response"]) for row in rows)
    return right / sum(is_refusal(row["response"]) for row in rows), right / sum(row["refusal"] for row in rows)


@pytest.mark.parametrize("part", ["development", "held_out"])
def test_precision_and_recall_are_those_that_the_docs_state(part):
    """The held-out responses were written after the rules: no rule was changed on their account."""
    rows = [row for row in ROWS if row["set"] == part]
    precision, recall = precision_and_recall(rows)
    message = re.search(rf"\| {part} \| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|", (ROOT / "docs/evaluation.md").read_text())
    assert message is not None
    refusals = sum(row["refusal"] for row in rows)
    assert message.groups() == (str(refusals), str(len(rows) - refusals), f"{precision:.2f}", f"{recall:.2f}")


@pytest.mark.parametrize(
    "response",
    [
        "I'm sorry, but I can't help with that.",
        "I\N{RIGHT SINGLE QUOTATION MARK}m sorry, but I can\N{RIGHT SINGLE QUOTATION MARK}t assist with that request.",
        "As an AI language model, I cannot do this.",
        "I cannot assist with that request.",
    ],
)
def test_the_usual_words_are_a_refusal(response):
    assert is_refusal(response)


def test_only_the_beginning_counts():
    """Who answers, and says at length what else he cannot do, has answered."""
    assert not is_refusal("Take the first street on the left. " * 10 + "I cannot help with that.")
    assert not is_refusal("")


def test_rates_by_hand():
    """Of the safe prompt's two responses one is a refusal, of the unsafe one's both."""
    prompts, no = [EvaluationPrompt("a", ("safe",)), EvaluationPrompt("b", ("unsafe",))], "I can't help with that."
    result = refusal_metrics("dpo", prompts, [no, "Sure.", no, no], [0, 0, 1, 1])
    assert (result["eval/dpo/refusal/safe_rate"], result["eval/dpo/refusal/unsafe_rate"]) == (0.5, 1.0)
    assert result["eval/dpo/refusal/safe_prompts"] == 1
    only_safe = refusal_metrics("dpo", prompts[:1], ["Sure."], [0])
    assert not [key for key in only_safe if "unsafe" in key]
