"""PPO-Lagrangian's rounds on a small world: the constants of an episode by hand, one optimizer, and a killed run that goes on."""

import copy
from dataclasses import replace

import lightning as L
import pytest
import torch

from cdpo_lightning.config import ClosedFormConfig, PPOConfig, TrainerConfig
from cdpo_lightning.constraints.constraint import Constraint, DualState
from cdpo_lightning.constraints.measures import Mean
from cdpo_lightning.constraints.updates import Log, Newton
from cdpo_lightning.data.world import grammar
from cdpo_lightning.data.world.closed_form import make_world
from cdpo_lightning.evaluation.evaluator import PolicyEvaluator
from cdpo_lightning.maths.ppo import kl_coefficient
from cdpo_lightning.models.heads.value_model import ValueModel
from cdpo_lightning.models.lm.causal_lm import build, parameter_hash, word_tokenizer
from cdpo_lightning.models.lm.response_logp import response_logp_of_rows
from cdpo_lightning.scorers.oracle import OracleScorer
from cdpo_lightning.store.history import History
from cdpo_lightning.text.templates import Encoder
from cdpo_lightning.training.callbacks.compute_meter import ComputeMeter
from cdpo_lightning.training.callbacks.rollout_round import RolloutRound
from cdpo_lightning.training.callbacks.round_log import RoundLog
from cdpo_lightning.training.data_modules.rollouts import Rollouts
from cdpo_lightning.training.dual_loop import DualLoop
from cdpo_lightning.training.fit import FitSettings, FitStage, fit
from cdpo_lightning.training.modules.ppo import PPOModule

WORLD = make_world(ClosedFormConfig(prompts=8, responses=16), seed=0)
TOKENIZER = word_tokenizer(grammar.vocabulary())
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
BETA = 0.5
COST = (Constraint("cost", "cost", Mean(), -0.5),)
DEMONSTRATIONS = [((3, 4), [(5, 1), (6, 7, 1)]), ((8,), [(9, 1)])]


def make(constraints=COST, update=None, **ppo):
    """A round's data module on a random reference."""
    values = {"rounds": 4, "samples_per_prompt": 4, "passes": 2, "batch_size": 16, "window": 10} | ppo
    reference = build(SIZES, len(TOKENIZER), 0, 1, 0).eval().requires_grad_(False)
    evaluator = PolicyEvaluator(
        {name: OracleScorer(WORLD, name, name) for name in ("reward", "cost")},
        reference,
        Encoder(TOKENIZER, "plain", 16, 8),
        64,
        64,
        "32-true",
    )
    actor = copy.deepcopy(reference).requires_grad_(True)
    critics = {name: ValueModel(reference) for name in ("reward", *(c.name for c in constraints))}
    module = PPOModule(actor, critics, PPOConfig(**values))
    loop = DualLoop(constraints, update or Log(0.1, 20.0), BETA, 1, 0, 4, seed=3)
    start = DualState(lam=dict.fromkeys((c.name for c in constraints), 1.0))
    return Rollouts(module, evaluator, WORLD.prompts, loop, start, DEMONSTRATIONS)


def draw(data):
    return data.evaluator.measure(data.module.model, data.prompts, 4, 1)


def draw_scored(data):
    """Samples with random scores: an untrained policy never writes a valid response, and those that are not valid score alike."""
    measured = draw(data)
    scores = torch.randn(2, len(measured.samples), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return replace(measured, scores=dict(zip(("reward", "cost"), scores, strict=True)))


def test_lambda_steps_on_the_mean_of_the_window():
    """32 episodes a round and a window of 10: the last ten, of all prompts alike; log lambda moves by lr (mean - limit)."""
    data = make()
    measured = draw(data)
    data.step(measured)
    last = [float(measured.scores["cost"][p * 4 + i]) for i in range(4) for p in range(8)][-10:]
    assert data.windows["cost"] == pytest.approx(last)
    assert data.dual.lam["cost"] == pytest.approx(torch.tensor(0.1 * (sum(last) / 10 + 0.5)).exp().item())
    assert (data.dual.round, data.counts.samples) == (1, 32)
    assert data.counts.tokens == sum(len(s.tokens) for s in measured.samples)


def test_the_constants_of_an_episode_while_the_policy_is_the_reference():
    """Critics of 0 and no KL yet, gae_lambda 1: every return is the episode's score, every advantage (r - lam c)/(1 + lam)."""
    data = make(gae_lambda=1.0)
    measured = draw(data)
    data.step(measured)
    lam, location = data.dual.lam["cost"], 0
    episodes = data.episodes(measured)
    logp = response_logp_of_rows(data.module.model, [episode.row for episode in episodes], 64, "32-true")
    for episode in episodes:
        start = 0
        for response in episode.row[1]:
            own = episode.token_XN[:, start : start + len(response)]
            reward, cost = (float(measured.scores[name][location]) for name in ("reward", "cost"))
            assert measured.samples[location].tokens == tuple(response)
            assert own[0].sum().item() == pytest.approx(float(logp[location]), abs=1e-4)
            assert own[1].tolist() == pytest.approx([(reward - lam * cost) / (1 + lam)] * len(response), abs=1e-4)
            assert own[4].tolist() == pytest.approx([reward] * len(response), abs=1e-4)
            assert own[5].tolist() == pytest.approx([cost] * len(response), abs=1e-4)
            start, location = start + len(response), location + 1


def test_a_policy_that_left_the_reference_pays_for_it():
    """Discount 1 and no bootstrapping: the return before the first token is the score less kl log(pi/pi_ref) of the episode."""
    data = make(gae_lambda=1.0)
    torch.manual_seed(1)
    for parameter in data.module.model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    measured = draw(data)
    data.step(measured)
    first = torch.cat([e.token_XN for e in data.episodes(measured)], 1)
    starts = torch.tensor([0, *[len(s.tokens) for s in measured.samples]]).cumsum(0)[:-1]
    kl = kl_coefficient(0.0, BETA, data.dual.lam["cost"]) * (measured.policy_logp - measured.reference_logp)
    assert kl.abs().mean() > 0.01
    torch.testing.assert_close(first[4, starts], measured.scores["reward"] - kl, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(first[5, starts], measured.scores["cost"] + kl, rtol=1e-3, atol=1e-3)


def test_any_update_steps_the_multiplier():
    """Newton with the window as long as a round: 1 + 0.5 beta (E[c] + 0.5) / E Var(c | x), the variance written out here."""
    data = make(update=Newton(0.5, 10.0, 20.0), window=32)
    measured = draw_scored(data)
    data.step(measured)
    cost = measured.scores["cost"].view(8, 4)
    step = 0.5 * BETA * (float(cost.mean()) + 0.5) / float(cost.var(1).mean())
    assert data.dual.lam["cost"] == pytest.approx(1 + step)


def test_two_constraints_have_two_critics_and_two_multipliers():
    """The second bounds the reward from above. While the policy is the reference: (r - l1 c - l2 r)/(1 + l1 + l2)."""
    data = make((*COST, Constraint("ceiling", "reward", Mean(), 0.0)), gae_lambda=1.0)
    assert list(data.module.critics) == ["reward", "cost", "ceiling"]
    measured = draw_scored(data)
    data.step(measured)
    lam = data.dual.lam
    assert lam["cost"] != lam["ceiling"]
    tokens = torch.cat([e.token_XN for e in data.episodes(measured)], 1)
    assert len(tokens) == 8
    starts = torch.tensor([0, *[len(s.tokens) for s in measured.samples]]).cumsum(0)[:-1]
    reward, cost = measured.scores["reward"], measured.scores["cost"]
    expected = (reward - lam["cost"] * cost - lam["ceiling"] * reward) / (1 + lam["cost"] + lam["ceiling"])
    torch.testing.assert_close(tokens[1, starts], expected, rtol=1e-4, atol=1e-4)


def test_every_episode_is_read_as_often_as_there_are_passes():
    data = make()
    batches = list(data.train_dataloader())
    assert sum(batch.rows.responses for batch in batches) == 2 * 32
    assert all(batch.demonstrations is None for batch in batches), "ptx is off"
    assert sum(batch.trained_tokens for batch in batches) == 3 * sum(batch.rows.tokens for batch in batches)
    with_ptx = list(make(ptx=2.0).train_dataloader())
    assert all(batch.demonstrations is not None for batch in with_ptx)


def test_one_optimizer_with_a_group_for_each_network_and_no_gradient_between_them():
    module = make(lr=1e-3, critic_lr=5e-4).module
    optimizer = module.configure_optimizers()["optimizer"]
    networks = (module.model, *module.critics.values())
    assert list(module.critics) == ["reward", "cost"]
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 5e-4, 5e-4]
    for group, network in zip(optimizer.param_groups, networks, strict=True):
        assert {id(p) for p in group["params"]} == {id(p) for p in network.parameters()}


class Killed(RuntimeError):
    """What ends a run before its time."""


class Kill(L.Callback):
    """Kills the run in the middle of its third round."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == 2:
            raise Killed


def train(folder, *callbacks, resume=False):
    data, history, budget = make(ptx=0.5), History(folder / "history.csv", resume), ComputeMeter()
    log = RolloutRound(RoundLog(history, "ppo_lag", lambda row: None))
    settings = FitSettings(TrainerConfig(), history, folder / "checkpoints", seed=3)
    fit(data.module, data, FitStage("policy", 4, folder / "checkpoints", who="ppo_lag"), settings, [log, budget, *callbacks])
    return data, budget


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    """Weights of all three networks to the last bit, lambda round by round, the window, the budget and the history."""
    whole, compute = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "cut", Kill())
    torch.manual_seed(99)
    again, counted = train(tmp_path / "cut", resume=True)
    assert parameter_hash(again.module) == parameter_hash(whole.module)
    assert (again.dual, again.windows, again.counts) == (whole.dual, whole.windows, whole.counts)
    assert counted.tokens == compute.tokens > 0
    texts = [(tmp_path / name / "history.csv").read_text() for name in ("whole", "cut")]
    assert texts[0] == texts[1]
    assert parameter_hash(whole.module.model) != parameter_hash(whole.evaluator.reference)
    ended, nothing_more = train(tmp_path / "cut", resume=True)
    assert (ended.dual, nothing_more.tokens) == (whole.dual, compute.tokens)
