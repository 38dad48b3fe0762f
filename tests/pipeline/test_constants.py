"""Constants are computed once, for the text that the policy learns to write: truncated where its tokens are."""

from dataclasses import replace

import pytest
import torch

from cdpo_lightning.config import ClosedFormConfig
from cdpo_lightning.constraints.constraint import Constraint
from cdpo_lightning.constraints.measures import Mean
from cdpo_lightning.data.corpus import Corpus, Split, closed_form_corpus
from cdpo_lightning.data.records import PreferencePair
from cdpo_lightning.models.lm.causal_lm import word_tokenizer
from cdpo_lightning.pipeline.base_model import IdentifiedModel
from cdpo_lightning.pipeline.constants import StoredConstants, exact_problem, make_training_pairs
from cdpo_lightning.text.templates import Encoder

ENCODER = Encoder(word_tokenizer(["a", "b", "c", "d"]), "plain", 4, 3)
LIMITED = (Constraint("cost", "cost", Mean(), -0.5),)
EMPTY = Corpus(Split([], []), Split([], []), Split([], []), [], [])
TEXTS = [("p", "x"), ("p", "y"), ("q", "x")]
ROWS = [((3, 4), [(5, 1), (6, 1)]), ((7,), [(5, 1)])]


# StoredConstants


@pytest.fixture
def reference(make_model):
    return IdentifiedModel(make_model(), "sft:abc")


@pytest.fixture
def constants(store, reference, inference, look_up):
    scorers = {name: look_up({"x": 1.0, "y": value}, identity=f"{name}:1") for name, value in (("reward", 2.0), ("cost", -3.0))}
    return StoredConstants(store, scorers, reference, inference, "sdpa")


def calls(constants):
    return {name: scorer.calls for name, scorer in constants.scorers.items()}


def test_scores_and_log_probabilities_are_in_the_order_of_the_texts(constants, reference, inference):
    scores, logp = constants(TEXTS, ROWS)
    assert {name: score.tolist() for name, score in scores.items()} == {"reward": [1.0, 2.0, 1.0], "cost": [1.0, -3.0, 1.0]}
    torch.testing.assert_close(logp, inference.logp(reference.model, ROWS), rtol=0, atol=0)


def test_a_second_call_runs_neither_scorer_nor_reference(constants, monkeypatch):
    first = constants(TEXTS, ROWS)
    before = calls(constants)
    assert before == {"reward": 1, "cost": 1}
    monkeypatch.setattr(type(constants.inference), "logp", lambda *_: pytest.fail("the reference was run again"))
    again = constants(TEXTS, ROWS)
    assert calls(constants) == before
    torch.testing.assert_close(again, first, rtol=0, atol=0)


def test_another_run_of_the_same_store_finds_them(constants):
    constants(TEXTS, ROWS)
    replace(constants)(TEXTS, ROWS)
    assert calls(constants) == {"reward": 1, "cost": 1}


def test_scores_depend_on_the_scorer_the_texts_and_the_precision(constants, look_up):
    constants(TEXTS, ROWS)
    other = look_up({}, identity="reward:2")
    scores, _ = replace(constants, scorers={"reward": other})(TEXTS, ROWS)
    assert (other.calls, scores["reward"].tolist()) == (1, [0.0, 0.0, 0.0])
    constants(TEXTS[::-1], ROWS)
    assert calls(constants) == {"reward": 2, "cost": 2}
    replace(constants, inference=replace(constants.inference, precision="bf16-mixed"))(TEXTS, ROWS)
    assert calls(constants) == {"reward": 3, "cost": 3}


def test_reference_log_probabilities_depend_on_reference_rows_and_numerics(constants, make_model, tmp_path):
    first = constants.reference_logp(ROWS)
    other = IdentifiedModel(make_model(1), "sft:def")
    assert not torch.equal(replace(constants, reference=other).reference_logp(ROWS), first)
    torch.testing.assert_close(constants.reference_logp(ROWS[1:]), first[2:], rtol=1e-5, atol=1e-5)
    for changed in (replace(constants, attention="eager"), replace(constants, reference=replace(other, identity="sft:ghi"))):
        assert changed.reference_logp(ROWS).shape == first.shape
    assert len(list(tmp_path.glob("artifacts/reference_logp/*/meta.json"))) == 5


def test_forwards_are_counted_once_and_only_those_of_models(constants, store):
    """The three responses are run through the reference; look-ups are no models."""
    for _ in range(2):
        constants(TEXTS, ROWS)
    totals = {key: store.forward_counter.total(f"store/{key}_forwards") for key in ("reward", "cost", "reference")}
    assert totals == {"reward": 0, "cost": 0, "reference": 3}


# make_training_pairs


def made(pairs, seed=0):
    """The pairs, the counts, and the texts and rows that constants were computed of: scores are 0, 1, 2, ..."""
    requested = []

    def constants(texts, rows):
        requested.append((texts, rows))
        value = torch.arange(len(texts), dtype=torch.float64)
        return {"reward": value, "cost": -value}, value - 10

    return *make_training_pairs(pairs, ENCODER, constants, seed), *requested[0]


def pair(prompt, first, second, **labels):
    return PreferencePair(prompt, first, second, **labels)


def test_a_response_that_is_truncated_is_scored_as_truncated():
    pairs, counts, texts, rows = made([pair("a", "b c", "d c b a")])
    assert texts == [("a", "b c"), ("a", "d c b")]
    assert [ENCODER.decode(tokens) for tokens in pairs.table.responses] == ["b c", "d c b"]
    assert [responses for _, responses in rows] == [[tokens] for tokens in pairs.table.responses]
    assert counts == {"data/truncated": 1, "data/equal_after_cut": 0}


def test_every_prompt_and_response_that_loses_tokens_is_counted_once():
    """A prompt has room for four tokens, a response for two and its end: `a b c d a`, `b c d` and `c c c` lose some."""
    long = "a b c d a"
    _, counts, *_ = made([pair(long, "b", "b c d"), pair(long, "b c d", "c c c"), pair("a", "b", "c d")])
    assert counts["data/truncated"] == 3


def test_a_pair_whose_responses_are_equal_after_truncation_is_dropped():
    pairs, counts, *_ = made([pair("a", "b c d a", "b c d c"), pair("a", "b", "c", better=1), pair("b", "c", "d", safer=0)])
    assert counts["data/equal_after_cut"] == 1
    assert len(pairs.table) == 2
    assert pairs.records == [pair("a", "b", "c", better=1), pair("b", "c", "d", safer=0)]


def test_records_and_pairs_of_the_table_are_in_one_order():
    given = [pair("b", "a", "c"), pair("a", "b", "c"), pair("b", "c", "d"), pair("a", "c", "b")]
    pairs, *_ = made(given)
    assert pairs.prompts == ["b", "a"]
    assert pairs.records == given
    table = pairs.table
    for record, ends in zip(given, table.pair_M2.tolist(), strict=True):
        assert [ENCODER.decode(table.responses[i]) for i in ends] == list(record.responses)
        assert {pairs.prompts[int(table.prompt_N[i])] for i in ends} == {record.prompt}
    assert table.prompts == tuple(ENCODER.prompt(prompt) for prompt in pairs.prompts)


def test_a_response_of_several_pairs_is_computed_once():
    pairs, _, texts, _ = made([pair("a", "b", "c"), pair("a", "c", "d"), pair("b", "c", "d")])
    assert texts == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")]
    assert pairs.table.pair_M2.tolist() == [[0, 1], [1, 2], [3, 4]]
    assert pairs.table.scores["cost"].tolist() == [0, -1, -2, -3, -4]
    assert pairs.table.reference_logp_N.tolist() == [-10, -9, -8, -7, -6]


def test_label_draws_belong_to_the_seed():
    given = [pair("a", "b", "c"), pair("a", "c", "d")]
    draws = [made(given, seed)[0].table.draw_M.tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert all(0 <= draw < 1 for draw in draws[0])


def test_pairs_that_are_all_dropped_leave_an_empty_table():
    pairs, counts, *_ = made([pair("a", "b c d a", "b c d c")])
    assert (len(pairs.table), pairs.records, counts["data/equal_after_cut"]) == (0, [], 1)


# The exact problem


def test_outside_the_closed_form_world_there_is_no_exact_problem(encoder):
    assert exact_problem(EMPTY, LIMITED, encoder, lambda *_: pytest.fail("nothing is enumerated"), 0.5) is None


def test_the_exact_problem_has_every_response_to_every_prompt(encoder):
    """Scores that name their text: 100 p + k for response k to prompt p."""
    world = closed_form_corpus(ClosedFormConfig(prompts=8, responses=16, pairs_per_prompt=1, demonstrations_per_prompt=1), 0)
    prompts, responses = world.world.prompts, world.world.responses

    def constants(texts, rows):
        value = torch.tensor([100.0 * prompts.index(p) + responses.index(r) for p, r in texts], dtype=torch.float64)
        flat = [(prompt, response) for prompt, every in rows for response in every]
        assert flat == [(encoder.prompt(p), encoder.response(r)) for p, r in texts], "rows are in the order of the texts"
        return {"reward": value, "cost": -value}, value - 1000

    problem = exact_problem(world, LIMITED, encoder, constants, 0.7)
    numbers = torch.arange(8)[:, None] * 100.0 + torch.arange(16)
    assert problem.scores["reward"].tolist() == numbers.tolist()
    assert problem.scores["cost"].tolist() == (-numbers).tolist()
    assert problem.reference_logp.tolist() == (numbers - 1000).tolist()
    for column, name in enumerate(("reward", "cost")):
        assert problem.truth[name].tolist() == [[world.world.truth(p, r)[column] for r in responses] for p in prompts]
    assert (problem.constraints, problem.beta) == (LIMITED, 0.7)
