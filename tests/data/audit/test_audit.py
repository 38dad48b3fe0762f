"""The audit: each fault on rows made for it, properties of the policies, and the real file against an independent count."""

import json
import os
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdpo_lightning.data.audit.audit import POLICIES, audit_demonstrations, audit_labels, audit_pairs, split_by_prompt
from cdpo_lightning.data.records import Demonstration, LabelledAnswer, PreferencePair
from cdpo_lightning.data.sources import PAIR_SOURCES
from cdpo_lightning.errors import ConfigError, DataError

DATA = Path(os.environ.get("CDPO_DATA") or Path(__file__).parents[4] / "shared" / "data")
read_pku_saferlhf = PAIR_SOURCES["pku_saferlhf"]().read
CONFLICTS = ("contradictory_labels", "contradictory_preferences", "safer_is_unsafe")


def swapped(pair: PreferencePair) -> PreferencePair:
    better, safer = (None if index is None else 1 - index for index in (pair.better, pair.safer))
    return PreferencePair(pair.prompt, pair.response_1, pair.response_0, better, safer, pair.safe_1, pair.safe_0)


def faults(report) -> dict[str, int]:
    """Return the counts that are not 0, without those that follow from others."""
    metrics = report.as_metrics()
    return {name[5:]: n for name, n in metrics.items() if n and name[5:] not in {"rows", "pairs", "dropped", "contradictions"}}


A = PreferencePair("p", "a", "b", safer=0, safe_0=True, safe_1=False)  # a is safe, b is not
B = PreferencePair("p", "b", "c", safer=1, safe_0=True, safe_1=True)  # b is safe
BLANK = (PreferencePair(" ", "a", "b"), PreferencePair("p", "\n", "b"), PreferencePair("p", "a", ""))

# name: rows, faults counted, rows kept by drop, by flip, by keep
CASES = {
    "clean": ([A], {}, [A], [A], [A]),
    "empty": ([*BLANK, A], {"empty": 3}, [A], [A], [A]),
    "tie": ([PreferencePair("p", "a", "a", safer=0), A], {"ties": 1}, [A], [A], [A]),
    "no label": ([PreferencePair("p", "a", "b")], {"missing": 1}, *[[PreferencePair("p", "a", "b")]] * 3),
    "repeats": ([A, A, A], {"duplicates": 2}, [A], [A], [A]),
    "both orders": ([A, swapped(A)], {"both_orders": 1}, [A], [A], [A]),
    "repeats in both orders": ([A, swapped(A), A, swapped(A)], {"both_orders": 1, "duplicates": 2}, [A], [A], [A]),
    "other prompt": (
        [A, PreferencePair("q", "b", "a", safer=0)],
        {},
        *[[A, PreferencePair("q", "b", "a", safer=0)]] * 3,
    ),
    "tied safety labels": ([A, B], {"contradictory_labels": 2}, [], [], [A, B]),
    "majority of safety labels": (
        [A, A, B],
        {"contradictory_labels": 3, "duplicates": 1, "flipped": 1},
        [],
        [A, PreferencePair("p", "b", "c", safer=1, safe_0=False, safe_1=True)],
        [A, B],
    ),
    "safer is unsafe": (
        [PreferencePair("p", "a", "b", safer=1, safe_0=True, safe_1=False)],
        {"safer_is_unsafe": 1, "flipped": 1},
        [],
        [A],
        [PreferencePair("p", "a", "b", safer=1, safe_0=True, safe_1=False)],
    ),
    "tied preferences": (
        [PreferencePair("p", "a", "b", better=0), PreferencePair("p", "b", "a", better=0)],
        {"contradictory_preferences": 2},
        [],
        [],
        [PreferencePair("p", "a", "b", better=0), PreferencePair("p", "b", "a", better=0)],
    ),
    "majority of preferences": (
        [PreferencePair("p", "a", "b", safer=index) for index in (0, 1, 0)],
        {"contradictory_preferences": 3, "duplicates": 1, "flipped": 1},
        [],
        [PreferencePair("p", "a", "b", safer=0)],
        [PreferencePair("p", "a", "b", safer=0), PreferencePair("p", "a", "b", safer=1)],
    ),
    "safety labels outvote preferences": (
        [A, PreferencePair("p", "a", "b", safer=1), PreferencePair("p", "a", "b", safer=1)],
        {"contradictory_preferences": 3, "duplicates": 1, "flipped": 2},
        [],
        [A, PreferencePair("p", "a", "b", safer=0)],
        [A, PreferencePair("p", "a", "b", safer=1)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_faults_and_the_rows_that_each_policy_keeps(name):
    rows, counted, *kept_by = CASES[name]
    for policy, expected in zip(("drop", "flip", "keep"), kept_by, strict=True):
        kept, report = audit_pairs(rows, policy)
        assert kept == expected
        assert faults(report) == {fault: n for fault, n in counted.items() if fault != "flipped" or policy == "flip"}
        assert (report.rows, report.kept, report.dropped) == (len(rows), len(kept), len(rows) - len(kept))


def test_a_row_with_two_contradictions_is_counted_once():
    _, report = audit_pairs([A, PreferencePair("p", "a", "b", safer=1, safe_0=True, safe_1=True)], "keep")
    assert (report.contradictory_labels, report.contradictory_preferences, report.contradictions) == (2, 2, 2)


def test_the_policy_error_names_the_first_row_and_its_fault():
    rows = [A, PreferencePair("q", "a", "b", safer=1, safe_0=True, safe_1=False, row="pku.jsonl:17")]
    with pytest.raises(DataError, match=r"^pku\.jsonl:17: safer_is_unsafe, expected .*; .* drop or flip"):
        audit_pairs(rows, "error")
    assert audit_pairs([A, A], "error")[0] == [A]


@pytest.mark.parametrize("audit", [audit_pairs, audit_labels])
def test_an_unknown_policy_is_refused(audit):
    with pytest.raises(ConfigError, match="'ignore', expected one of drop, flip, keep, error"):
        audit([], "ignore")


SAFETY = st.sampled_from([None, True, False])
INDEX = st.sampled_from([None, 0, 1])
PAIRS = st.lists(
    st.builds(PreferencePair, st.sampled_from("pq"), *[st.sampled_from(["a", "b", "c", ""])] * 2, INDEX, INDEX, SAFETY, SAFETY),
    max_size=12,
)
RESOLVING = st.sampled_from(["drop", "flip"])


@given(PAIRS, st.sampled_from(["drop", "flip", "keep"]))
def test_auditing_twice_changes_nothing(pairs, policy):
    once, _ = audit_pairs(pairs, policy)
    again, report = audit_pairs(once, policy)
    assert again == once
    assert (report.dropped, report.flipped) == (0, 0)


@given(PAIRS, RESOLVING)
def test_drop_and_flip_leave_no_contradiction(pairs, policy):
    kept, _ = audit_pairs(pairs, policy)
    _, report = audit_pairs(kept, "error")
    assert not set(faults(report)) - {"missing"}


@given(PAIRS)
def test_counts_do_not_depend_on_the_policy(pairs):
    reports = [faults(audit_pairs(pairs, policy)[1]) for policy in ("keep", "drop", "flip")]
    assert reports[0] == reports[1] == {name: n for name, n in reports[2].items() if name != "flipped"}


@given(PAIRS, st.data())
def test_swapping_responses_changes_no_label(pairs, data):
    """The swapped rows are drawn at random; the kept pairs have the same labels, whatever their order."""
    reordered = [swapped(pair) if data.draw(st.booleans()) else pair for pair in pairs]
    for policy in ("drop", "flip", "keep"):
        kept, kept_reordered = audit_pairs(pairs, policy)[0], audit_pairs(reordered, policy)[0]
        assert len(kept) == len(kept_reordered)
        assert all(one in (other, swapped(other)) for one, other in zip(kept, kept_reordered, strict=True))


@given(PAIRS)
def test_drop_and_keep_change_no_row_and_no_order(pairs):
    numbered = [PreferencePair(**{**vars(pair), "row": str(index)}) for index, pair in enumerate(pairs)]
    for policy in ("drop", "keep"):
        kept = [int(pair.row) for pair in audit_pairs(numbered, policy)[0]]
        assert kept == sorted(set(kept))
        assert all(numbered[index] == pair for index, pair in zip(kept, audit_pairs(numbered, policy)[0], strict=True))


# Single answers


SAFE, UNSAFE = LabelledAnswer("p", "a", True), LabelledAnswer("p", "a", False)
LABELS = st.lists(st.builds(LabelledAnswer, st.sampled_from("pq"), st.sampled_from(["a", "b", ""]), st.booleans()), max_size=12)


@pytest.mark.parametrize(
    ("rows", "counted", "by_drop", "by_flip"),
    [
        ([SAFE, SAFE], {"duplicates": 1}, [SAFE], [SAFE]),
        ([SAFE, LabelledAnswer("q", "a", False)], {}, *[[SAFE, LabelledAnswer("q", "a", False)]] * 2),
        ([SAFE, UNSAFE], {"contradictory_labels": 2}, [], []),
        ([UNSAFE, SAFE, UNSAFE], {"contradictory_labels": 3, "duplicates": 1, "flipped": 1}, [], [UNSAFE]),
        ([LabelledAnswer("p", " ", True), LabelledAnswer("", "a", True)], {"empty": 2}, [], []),
    ],
)
def test_single_answers(rows, counted, by_drop, by_flip):
    dropped, report = audit_labels(rows, "drop")
    flipped, report_of_flip = audit_labels(rows, "flip")
    assert (dropped, flipped) == (by_drop, by_flip)
    assert faults(report_of_flip) == counted
    assert faults(report) == {fault: n for fault, n in counted.items() if fault != "flipped"}
    assert report.dropped == len(rows) - len(dropped)


def test_contradictory_single_answers_are_an_error_under_that_policy():
    with pytest.raises(DataError, match=r"^x\.jsonl:1: contradictory_labels"):
        audit_labels([LabelledAnswer("p", "a", True, "x.jsonl:1"), UNSAFE], "error")


@given(LABELS, st.sampled_from(["drop", "flip", "keep"]))
def test_auditing_single_answers_twice_changes_nothing(labels, policy):
    once, _ = audit_labels(labels, policy)
    again, report = audit_labels(once, policy)
    assert (again, report.dropped, report.flipped) == (once, 0, 0)


def test_blank_and_repeated_demonstrations_are_dropped():
    good = Demonstration("p", "a")
    kept, report = audit_demonstrations([good, Demonstration("p", " "), good, Demonstration("", "a")])
    assert kept == [good]
    assert faults(report) == {"empty": 2, "duplicates": 1}


# The split


PROMPTS = st.lists(st.text(max_size=5), max_size=20)


@given(PROMPTS, st.floats(0, 1), st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_side_of_a_prompt_depends_on_seed_and_prompt_alone(prompts, fraction, seed, random):
    items = [Demonstration(prompt, str(index)) for index, prompt in enumerate(prompts)]
    train, held_out = split_by_prompt(items, fraction, seed)
    assert not {item.prompt for item in train} & {item.prompt for item in held_out}
    assert [item for item in items if item in train] == train
    assert len(train) + len(held_out) == len(items)
    some = random.sample(items, len(items) // 2)
    assert set(split_by_prompt(some, fraction, seed)[1]) == set(held_out) & set(some)


def test_the_share_held_out_is_about_the_fraction_and_the_seed_matters():
    """2,000 draws with probability 0.2: mean 400, standard deviation sqrt(2000 * 0.2 * 0.8) = 17.9."""
    items = [Demonstration(f"prompt {index}", "a") for index in range(2000)]
    held_out = [set(split_by_prompt(items, 0.2, seed)[1]) for seed in (0, 1)]
    assert all(abs(len(side) - 400) < 4 * 17.9 for side in held_out)
    assert held_out[0] != held_out[1]
    assert split_by_prompt(items, 0, 0) == (items, [])
    assert split_by_prompt(items, 1, 0) == ([], items)


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(ConfigError, match="fraction"):
        split_by_prompt([], fraction, 0)


# The real file, against a count that does not use the audit


def independent_count(rows: list[dict]) -> tuple[dict[str, int], dict[str, int]]:
    """Return (faults, rows kept by policy) of PKU rows that have every label and no empty text."""
    rows = [row for row in rows if row["response_0"] != row["response_1"]]
    safety, safer = defaultdict(list), defaultdict(list)
    for row in rows:
        for i in "01":
            safety[row["prompt"], row[f"response_{i}"]].append(row[f"is_response_{i}_safe"])
        safer[both(row)].append(row[f"response_{row['safer_response_id']}"])
    counts, kept, flipped = Counter(), {"drop": set(), "keep": set(), "flip": set()}, 0
    seen_exactly, seen = set(), set()
    for row in rows:
        s, texts, key = row["safer_response_id"], (row["response_0"], row["response_1"]), both(row)
        own = (row["is_response_0_safe"], row["is_response_1_safe"])
        exact, either = (row["prompt"], texts, own, s), (key, frozenset(zip(texts, own, strict=True)), texts[s])
        counts["duplicates" if exact in seen_exactly else "both_orders" if either in seen else "first"] += 1
        seen_exactly.add(exact)
        seen.add(either)
        result = [
            any(len(set(safety[row["prompt"], text])) == 2 for text in texts),
            len(set(safer[key])) == 2,
            own[1 - s] and not own[s],
        ]
        counts.update(name for name, there in zip(CONFLICTS, result, strict=True) if there)
        counts["contradictions"] += any(result)
        kept["keep"].add(either)
        if not any(result):
            kept["drop"].add(either)
        shares = [sum(safety[row["prompt"], text]) / len(safety[row["prompt"], text]) for text in texts]
        share = sum(text == texts[0] for text in safer[key]) / len(safer[key])
        if (shares[0] > 0.5) != (shares[1] > 0.5):
            share = float(shares[0] > 0.5)
        if 0.5 not in [*shares, share]:
            now = tuple(share > 0.5 for share in shares)
            kept["flip"].add((key, frozenset(zip(texts, now, strict=True)), texts[share < 0.5]))
            flipped += (*now, int(share < 0.5)) != (*own, s)
    del counts["first"]
    return dict(counts) | {"flipped": flipped}, {policy: len(pairs) for policy, pairs in kept.items()}


def both(row: dict) -> tuple:
    return (row["prompt"], *sorted([row["response_0"], row["response_1"]]))


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="no real data: set CDPO_DATA to its folder")
@pytest.mark.parametrize("name", ["pku_saferlhf_raw.jsonl", "pku_saferlhf_pairs.jsonl"])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_real_file_agrees_with_an_independent_count(name, policy):
    lines = [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]
    pairs = read_pku_saferlhf(str(DATA / name))
    expected, kept_by = independent_count(lines)
    if policy == "error" and expected.get("contradictions"):
        with pytest.raises(DataError, match=rf"^{name}:\d+: (contradictory|safer)"):
            audit_pairs(pairs, policy)
        return
    kept, report = audit_pairs(pairs, policy)
    ties = sum(row["response_0"] == row["response_1"] for row in lines)
    metrics = report.as_metrics()
    expected |= {"ties": ties, "empty": 0, "missing": 0, "rows": len(lines)}
    expected["flipped"] *= policy == "flip"
    assert {key: metrics[f"data/{key}"] for key in expected} == expected
    assert len(kept) == kept_by["keep" if policy == "error" else policy] == metrics["data/pairs"]


@pytest.mark.skipif(not DATA.is_dir(), reason="no real data: set CDPO_DATA to its folder")
def test_drop_gives_the_independently_cleaned_file():
    kept, _ = audit_pairs(read_pku_saferlhf(str(DATA / "pku_saferlhf_raw.jsonl")), "drop")
    cleaned = set(read_pku_saferlhf(str(DATA / "pku_saferlhf_pairs.jsonl")))
    assert len(kept) == len(cleaned)
    assert all(pair in cleaned or swapped(pair) in cleaned for pair in kept)
