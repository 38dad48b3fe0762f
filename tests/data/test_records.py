"""Records: which fields take part in comparisons, and the metrics of an audit report."""

from dataclasses import FrozenInstanceError

import pytest

from cdpo_lightning.data.records import AuditReport, Demonstration, LabelledAnswer, PreferencePair


def test_responses_and_safety_labels_are_in_the_order_of_the_preference_index():
    pair = PreferencePair("p", "a", "b", better=1, safer=0, safe_0=True, safe_1=False)
    assert pair.responses[pair.better] == "b"
    assert pair.safe[pair.safer] is True


@pytest.mark.parametrize(
    "make",
    [
        lambda row: PreferencePair("p", "a", "b", row=row),
        lambda row: LabelledAnswer("p", "a", True, row=row),
        lambda row: Demonstration("p", "a", row=row),
    ],
)
def test_the_location_does_not_take_part_in_comparisons(make):
    assert make("one.jsonl:1") == make("two.jsonl:2")
    assert len({make("one.jsonl:1"), make("two.jsonl:2")}) == 1


def test_records_are_frozen():
    with pytest.raises(FrozenInstanceError):
        PreferencePair("p", "a", "b").safer = 1


def test_a_report_gives_flat_metrics():
    metrics = AuditReport(rows=10, kept=7, ties=1, duplicates=2).as_metrics()
    assert (metrics["data/rows"], metrics["data/pairs"], metrics["data/dropped"]) == (10, 7, 3)
    faults = "empty ties missing duplicates both_orders contradictions contradictory_labels contradictory_preferences"
    names = {"rows", "pairs", "dropped", *faults.split(), "safer_is_unsafe", "flipped"}
    assert set(metrics) == {f"data/{name}" for name in names}


def test_metrics_of_two_audits_have_different_names():
    report = AuditReport(rows=2, kept=1)
    answers = report.as_metrics("data/labels", "answers")
    assert answers["data/labels/answers"] == 1
    assert not answers.keys() & report.as_metrics().keys()
