"""PPO-Lagrangian's rounds on a small world: the constants of an episode by hand, one optimizer, and a killed run that goes on."""

import copy

import lightning as L
import pytest
import torch

from cdpo_lightning.config import ClosedFormConfig, ConstraintConfig, PPOConfig, TrainerConfig
from cdpo_lightning.data.world import grammar
from cdpo_lightning.data.world.closed_form import make_world
from cdpo_lightning.evaluation.evaluator import OracleScorer, PolicyEvaluator, logp_of
from cdpo_lightning.maths.ppo import kl_coefficient
from cdpo_lightning.models.heads.value_model import ValueModel
from cdpo_lightning.models.lm.causal_lm import build, parameter_hash, word_tokenizer
from cdpo_lightning.store.history import History
from cdpo_lightning.text.templates import Encoder
from cdpo_lightning.training.callbacks.compute_meter import ComputeMeter
from cdpo_lightning.training.callbacks.rollout_log import RolloutLog
from cdpo_lightning.training.data_modules.rollouts import Rollouts
from cdpo_lightning.training.fit import Stage, fit
from cdpo_lightning.training.modules.ppo import PPOModule

WORLD = make_world(ClosedFormConfig(prompts=8, responses=16), seed=0)
TOKENIZER = word_tokenizer(grammar.vocabulary())
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
BETA = 0.5
DEMONSTRATIONS = [((3, 4), [(5, 1), (6, 7, 1)]), ((8,), [(9, 1)])]


def make(**ppo):
    """A round's data module on a random reference."""
    values = {"rounds": 4, "samples_per_prompt": 4, "passes": 2, "batch_size": 16, "window": 10} | ppo
    reference = build(SIZES, len(TOKENIZER), 0, 1, 0).eval().requires_grad_(False)
    evaluator = PolicyEvaluator(
        *(OracleScorer(WORLD, which, str(which)) for which in (0, 1)),
        reference,
        Encoder(TOKENIZER, "plain", 16, 8),
        64,
        64,
        "32-true",
    )
    actor = copy.deepcopy(reference).requires_grad_(True)
    module = PPOModule(actor, ValueModel(reference), ValueModel(reference), PPOConfig(**values))
    constraint = ConstraintConfig(c_limit=-0.5, update="log", lambda_init=1.0, lambda_lr=0.1)
    return Rollouts(module, evaluator, WORLD.prompts, constraint, BETA, 3, DEMONSTRATIONS)


def draw(data):
    return data.evaluator.measure(data.module.model, data.prompts, 4, 1)


def test_lambda_steps_on_the_mean_of_the_window():
    """32 episodes a round and a window of 10: the last ten, of all prompts alike; log lambda moves by lr (mean - limit)."""
    data = make()
    measured = draw(data)
    data.step(measured)
    last = [float(measured.cost[p * 4 + i]) for i in range(4) for p in range(8)][-10:]
    assert data.window == pytest.approx(last)
    assert data.dual.lam == pytest.approx(torch.tensor(0.1 * (sum(last) / 10 + 0.5)).exp().item())
    assert (data.dual.round, data.dual.sampled) == (1, 32)
    assert data.dual.sampled_tokens == sum(len(s.tokens) for s in measured.samples)


def test_the_constants_of_an_episode_while_the_policy_is_the_reference():
    """Critics of 0 and no KL yet, gae_lambda 1: every return is the episode's score, every advantage (r - lam c)/(1 + lam)."""
    data = make(gae_lambda=1.0)
    measured = draw(data)
    data.step(measured)
    lam, location = data.dual.lam, 0
    episodes = data.episodes(measured, data.prompts)
    logp = logp_of(data.module.model, [episode.row for episode in episodes], 64, "32-true")
    for episode in episodes:
        start = 0
        for response in episode.row[1]:
            own = episode.token_6N[:, start : start + len(response)]
            reward, cost = float(measured.reward[location]), float(measured.cost[location])
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
    first = torch.cat([e.token_6N for e in data.episodes(measured, data.prompts)], 1)
    starts = torch.tensor([0, *[len(s.tokens) for s in measured.samples]]).cumsum(0)[:-1]
    kl = kl_coefficient(0.0, BETA, data.dual.lam) * (measured.policy_logp - measured.reference_logp)
    assert kl.abs().mean() > 0.01
    torch.testing.assert_close(first[4, starts], measured.reward - kl, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(first[5, starts], measured.cost + kl, rtol=1e-3, atol=1e-3)


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
    networks = (module.model, module.reward_critic, module.cost_critic)
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
    log = RolloutLog(history, "ppo_lag", -0.5, lambda row: None)
    stage = Stage("policy", 4, folder / "checkpoints", seed=3, who="ppo_lag")
    fit(data.module, data, stage, TrainerConfig(), history, [log, budget, *callbacks])
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
    assert (again.dual, again.window) == (whole.dual, whole.window)
    assert counted.tokens == compute.tokens > 0
    texts = [(tmp_path / name / "history.csv").read_text() for name in ("whole", "cut")]
    assert texts[0] == texts[1]
    assert parameter_hash(whole.module.model) != parameter_hash(whole.evaluator.reference)
    ended, nothing_more = train(tmp_path / "cut", resume=True)
    assert (ended.dual, nothing_more.tokens) == (whole.dual, compute.tokens)
