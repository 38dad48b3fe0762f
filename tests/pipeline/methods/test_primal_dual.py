"""Parts of PD-DPO: what its dual step is told, the table of all pairs, and the log-probabilities that are kept in a table."""

import itertools

import pytest
import torch

from cdpo_lightning.config import PrimalDualConfig
from cdpo_lightning.constraints.constraint import Constraint
from cdpo_lightning.constraints.measures import Mean
from cdpo_lightning.evaluation.exact import ExactProblem, all_rows
from cdpo_lightning.pipeline.methods.primal_dual import complete_table, feedback_of, table_logp

PROMPTS, RESPONSES = [(3,), (4, 5)], [(6, 1), (7, 8, 1), (9, 1), (10, 1)]
SHAPE = (2, 4)


@pytest.fixture
def exact():
    generator = torch.Generator().manual_seed(1)
    logp, reward, cost = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(3))
    scores = {"reward": reward, "cost": cost}
    limited = (Constraint("cost", "cost", Mean(), 0.0),)
    return ExactProblem(logp, scores, scores, limited, 0.5, all_rows(PROMPTS, RESPONSES))


def test_scores_are_told_as_they_are():
    cost = torch.tensor([-1.0, 0.5])
    assert feedback_of(PrimalDualConfig(feedback="score"))(cost, 3) is cost


def test_binary_answers_belong_to_the_seed_and_have_the_cost_as_their_mean():
    """A response is called unsafe with probability sigmoid(cost); the cost is estimated from such answers."""
    ask = feedback_of(PrimalDualConfig(feedback="binary", asks=1000))
    cost = torch.linspace(-1.5, 1.5, 4000, dtype=torch.float64)
    assert torch.equal(ask(cost, 3), ask(cost, 3))
    assert not torch.equal(ask(cost, 3), ask(cost, 4))
    for part in (cost < 0, cost > 0):
        told = ask(cost, 3)[part]
        error = float(told.std()) / len(told) ** 0.5
        assert float(told.mean()) == pytest.approx(float(cost[part].mean()), abs=4 * error + 1e-3)


def test_the_complete_table_has_every_pair_of_each_prompt_once(exact):
    table = complete_table(exact, seed=0)
    assert table.prompts == tuple(PROMPTS)
    assert table.responses == tuple(RESPONSES) * 2
    assert table.prompt_N.tolist() == [0] * 4 + [1] * 4
    of_first = list(itertools.combinations(range(4), 2))
    expected = [*of_first, *((first + 4, second + 4) for first, second in of_first)]
    assert [tuple(pair) for pair in table.pair_M2.tolist()] == expected
    assert len(table.draw_M) == 12
    for name in ("reward", "cost"):
        assert table.scores[name].tolist() == exact.scores[name].flatten().tolist()
    assert table.reference_logp_N.tolist() == exact.reference_logp.flatten().tolist()


def test_log_probabilities_of_a_table_are_those_of_its_responses(exact, inference, make_model):
    model = make_model()
    expected = inference.logp(model, exact.rows)
    torch.testing.assert_close(table_logp(inference, model, complete_table(exact, 0)), expected, rtol=1e-4, atol=1e-4)
