"""The exploration bonus on a small model: high where nothing like it was seen, and what its optimum is."""

import pytest
import torch

from cdpo_lightning.constraints.constraint import Constraint, DualState
from cdpo_lightning.constraints.measures import Mean
from cdpo_lightning.data.pairs.objectives import CostPreference, LagrangianPreference
from cdpo_lightning.data.pairs.pair_table import PairTable, draws
from cdpo_lightning.maths.primal_dual import exploration_bonus
from cdpo_lightning.models.lm.causal_lm import build
from cdpo_lightning.models.lm.packed_forward import response_features
from cdpo_lightning.pipeline.methods.exploration import Exploration
from cdpo_lightning.text.packing import pack

BETA = 0.5
CONSTRAINTS = (Constraint("cost", "cost", Mean(), 0.0),)


def multiplier(lam):
    return DualState(lam={"cost": lam})


def reference():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return build(sizes, 12, 0, 1, 0).eval().requires_grad_(False)


def table(*responses):
    return PairTable(
        prompts=((3, 4),),
        responses=responses,
        prompt_N=torch.zeros(len(responses), dtype=torch.long),
        scores={name: torch.zeros(len(responses), dtype=torch.float64) for name in ("reward", "cost")},
        reference_logp_N=torch.zeros(len(responses), dtype=torch.float64),
        pair_M2=torch.tensor([[0, 1]]),
        draw_M=draws(1, 0),
    )


def test_a_feature_is_the_direction_of_the_mean_state_before_each_token():
    """Compared with the model's own hidden states of one sequence: those at the prompt's end and at the response's first token."""
    model, response = reference(), [5, 1]
    hidden = model.base_model(input_ids=torch.tensor([[3, 4, *response]])).last_hidden_state[0]
    mean = (hidden[1] + hidden[2]) / 2
    result = response_features(model, pack([((3, 4), [[7, 8, 1], response])]))[1]
    torch.testing.assert_close(result, mean / mean.norm(), rtol=1e-4, atol=1e-5)


def test_what_was_seen_often_is_raised_less():
    explore = Exploration(reference(), LagrangianPreference(BETA, "soft"), 0.3, 8, "32-true")
    raised = explore(table(*[(5, 1)] * 9, (8, 9, 2, 1)), multiplier(0.0))
    assert len(set(raised[:9].tolist())) == 1
    assert raised[9] > 1.5 * raised[0] > 0


def test_the_reference_is_raised_by_the_bonus_over_the_temperature():
    """weight b / beta in the first stage, weight b lambda / beta in the second."""
    model, given = reference(), table((5, 1), (6, 7, 1), (8, 1))
    features = response_features(model, pack([((3, 4), given.responses)]))
    bonus = 0.3 * exploration_bonus(features, features, 1.0)
    first = Exploration(model, LagrangianPreference(BETA, "soft"), 0.3, 8, "32-true")(given, multiplier(2.0))
    second = Exploration(model, CostPreference(BETA, "soft", CONSTRAINTS), 0.3, 8, "32-true")(given, multiplier(2.0))
    torch.testing.assert_close(first, bonus / BETA, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(second, 2 * bonus / BETA, rtol=1e-4, atol=1e-6)


def test_features_are_computed_once(monkeypatch: pytest.MonkeyPatch):
    from cdpo_lightning.pipeline.methods import exploration

    explore, read = Exploration(reference(), LagrangianPreference(BETA, "soft"), 0.3, 8, "32-true"), []
    monkeypatch.setattr(exploration, "pack", lambda rows: read.extend(rows) or pack(rows))
    explore(table((5, 1), (6, 1)), multiplier(0.0))
    explore(table((6, 1), (5, 1), (7, 1)), multiplier(0.0))
    assert sorted(responses[0] for _, responses in read) == [(5, 1), (6, 1), (7, 1)]
