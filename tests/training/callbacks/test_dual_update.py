"""The dual round by hand: which prompts, which pairs, which lambda, and which weights are kept."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from cdpo_lightning.config import PolicyConfig
from cdpo_lightning.constraints.constraint import Constraint, DualState
from cdpo_lightning.constraints.measures import Mean
from cdpo_lightning.constraints.updates import Projected
from cdpo_lightning.data.batching import choose_prompts
from cdpo_lightning.data.pairs.objectives import LagrangianPreference
from cdpo_lightning.data.pairs.pair_table import PairTable, draws
from cdpo_lightning.errors import NumericsError
from cdpo_lightning.evaluation.evaluator import Measurement
from cdpo_lightning.models.sampling.generation import Sample
from cdpo_lightning.store.history import History
from cdpo_lightning.streams import Stream, stream_seed
from cdpo_lightning.training.callbacks.dual_update import DualUpdate, effective_share, on_policy_pairs
from cdpo_lightning.training.callbacks.round_log import RoundLog
from cdpo_lightning.training.data_modules.pair_data import BestRound, PairDataModule
from cdpo_lightning.training.dual_loop import DualLoop

BETA = 0.5


def measurement(prompts=3, samples=4, cost=None, tokens=None, **changes):
    """Sample i has the token 20 + i, reward i / 10 and the given cost, else (i mod 3) - 1; the policy is the reference."""
    count = prompts * samples
    number, prompt = torch.arange(count), torch.arange(count) // samples
    tokens = tokens or [(20 + i, 1) for i in range(count)]
    made = Measurement(
        samples=[Sample(int(p), t, t[-1] == 1, -1.0) for p, t in zip(prompt, tokens, strict=True)],
        texts=[(f"p{p}", str(t)) for p, t in zip(prompt.tolist(), tokens, strict=True)],
        prompt=prompt,
        scores={
            "reward": number.double() / 10,
            "cost": (number % 3 - 1).double() if cost is None else torch.tensor(cost, dtype=torch.float64),
        },
        policy_logp=torch.full((count,), -1.0, dtype=torch.float64),
        reference_logp=torch.full((count,), -1.0, dtype=torch.float64),
        scored=count,
    )
    return replace(made, **changes)


def base_table(prompts=6):
    """Two responses to each prompt, of costs -2 + prompt and 5."""
    return PairTable(
        prompts=tuple((9, p) for p in range(prompts)),
        responses=tuple((10 + p, k, 1) for p in range(prompts) for k in (2, 3)),
        prompt_N=torch.arange(2 * prompts) // 2,
        scores={
            "reward": torch.zeros(2 * prompts, dtype=torch.float64),
            "cost": torch.tensor([c for p in range(prompts) for c in (p - 2, 5)], dtype=torch.float64),
        },
        reference_logp_N=torch.zeros(2 * prompts, dtype=torch.float64),
        pair_M2=torch.arange(2 * prompts).view(-1, 2),
        draw_M=draws(prompts, 0),
    )


CHOSEN = torch.tensor([0, 2, 5])


def test_on_policy_pairs_are_of_the_same_prompt_with_their_own_constants():
    measured, base = measurement(), base_table()
    measured = replace(measured, prompt=CHOSEN[measured.prompt], reference_logp=-torch.arange(12, dtype=torch.float64))
    pairs = on_policy_pairs(measured, base, per_prompt=50, seed=1, number=1)
    assert pairs.prompts == base.prompts
    seen = set()
    for first, second in pairs.pair_M2.tolist():
        assert first != second
        assert pairs.prompt_N[first] == pairs.prompt_N[second]
        for i in (first, second):
            sample = pairs.responses[i][0] - 20
            seen.add(sample)
            assert pairs.prompt_N[i] == CHOSEN[sample // 4]
            assert all(pairs.scores[name][i] == score[sample] for name, score in measured.scores.items())
            assert pairs.reference_logp_N[i] == -sample
    assert seen == set(range(12))
    assert len(pairs.draw_M) == len(pairs)


def test_on_policy_pairs_are_uniform_over_the_ordered_pairs():
    """Of 4 samples two are drawn with replacement; the 12 ordered pairs of different ones each have 1/16 of the draws."""
    count = 16_000
    pairs = on_policy_pairs(measurement(prompts=1), base_table(), count, seed=0, number=1)
    assert abs(len(pairs) - 0.75 * count) < 4 * (count * 0.75 * 0.25) ** 0.5
    seen = (pairs.pair_M2[:, 0] * 4 + pairs.pair_M2[:, 1]).bincount(minlength=16).view(4, 4).double()
    assert seen.diagonal().tolist() == [0] * 4
    assert (seen[~torch.eye(4, dtype=torch.bool)] - count / 16).abs().max() < 4.5 * (count / 16) ** 0.5


def test_equal_samples_make_no_pair_but_keep_their_weight():
    """Three of four samples are one text: it meets the other one in 2 (3/4)(1/4) of the draws."""
    tokens = [(7, 1), (8, 1), (7, 1), (7, 1)]
    count = 8000
    pairs = on_policy_pairs(measurement(prompts=1, tokens=tokens), base_table(), count, seed=0, number=1)
    assert {tuple(pairs.responses[i] for i in ends) for ends in pairs.pair_M2.tolist()} == {
        ((7, 1), (8, 1)), ((8, 1), (7, 1)),
    }  # fmt: skip
    assert abs(len(pairs) - 0.375 * count) < 4 * (count * 0.375 * 0.625) ** 0.5


def test_a_policy_that_always_says_the_same_gives_no_pair():
    pairs = on_policy_pairs(measurement(tokens=[(7, 1)] * 12), base_table(), 5, seed=0, number=1)
    assert pairs.pair_M2.shape == (0, 2)
    objective = LagrangianPreference(BETA, "soft")
    data = PairDataModule(base_table(), PolicyConfig(beta=BETA), objective, DualState(lam={}), 0)
    data.refresh(pairs)
    assert len(data.table) == 6


def test_on_policy_pairs_belong_to_their_seed():
    first, again, other = (on_policy_pairs(measurement(), base_table(), 20, seed, 1) for seed in (1, 1, 2))
    assert torch.equal(first.pair_M2, again.pair_M2)
    assert torch.equal(first.draw_M, again.draw_M)
    assert not torch.equal(first.pair_M2, other.pair_M2)


def test_effective_share_is_one_where_the_policy_is_the_optimum():
    """log pi = log pi_ref + (r - lam c)/beta - log Z(x), with a Z for each prompt; off it, the share is below 1."""
    measured = measurement()
    lam = 0.7
    z = torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64)[measured.prompt]
    reward, cost = measured.scores["reward"], measured.scores["cost"]
    utility = reward - lam * cost
    at_optimum = replace(measured, policy_logp=measured.reference_logp + utility / BETA - z)
    assert effective_share(at_optimum, utility, BETA) == pytest.approx(1.0)
    assert effective_share(at_optimum, reward - 1.7 * cost, BETA) < 0.9


def test_effective_share_by_hand():
    """One prompt, weights 3 and 1 (r = beta log 3): (3 + 1)^2 / (9 + 1) / 2 = 0.8."""
    measured = measurement(prompts=1, samples=2, cost=[0.0, 0.0])
    reward = torch.tensor([BETA * math.log(3), 0.0], dtype=torch.float64)
    assert effective_share(measured, reward, BETA) == pytest.approx(0.8)


class Script:
    """An evaluator that returns prepared measurements, one a round, and records its calls."""

    def __init__(self, *rounds):
        self.rounds, self.requested = list(rounds), []

    def measure(self, model, prompts, samples_per_prompt, seed):
        self.requested.append((tuple(prompts), samples_per_prompt, seed))
        return self.rounds.pop(0)


class Loop:
    """The callback on a module of one weight, without a trainer."""

    def __init__(self, tmp_path, *rounds, refresh=3, limit=0.0, lam=0.2, every_k_epochs=1, lam_max=20.0):
        constraints = (Constraint("cost", "cost", Mean(), limit),)
        policy = PolicyConfig(beta=BETA, refresh=refresh, labels="soft")
        objective = LagrangianPreference(BETA, "soft", constraints)
        self.data = PairDataModule(base_table(), policy, objective, DualState(lam={"cost": lam}), 0)
        self.history, self.evaluator, self.shown = History(tmp_path / "history.csv", False), Script(*rounds), []
        loop = DualLoop(constraints, Projected(0.5, lam_max), BETA, every_k_epochs, 3, 4, seed=7)
        log = RoundLog(self.history, "cdpo", self.shown.append)
        self.callback = DualUpdate(loop, self.evaluator, [f"p{i}" for i in range(6)], log, tmp_path, refresh)
        self.module = SimpleNamespace(model=torch.nn.Linear(1, 1, bias=False), log_dict=lambda *_, **__: None)

    def end_epoch(self, epoch=0, weight=0.0):
        torch.nn.init.constant_(self.module.model.weight, weight)
        trainer = SimpleNamespace(current_epoch=epoch, global_step=10 * (epoch + 1), datamodule=self.data, strategy=None)
        self.callback.on_train_epoch_end(trainer, self.module)


def test_a_round_by_hand(tmp_path):
    """Costs 1, 2, 3 for the prompts' four samples: E[c] = 2, so lambda goes from 0.2 to 0.2 + 0.5 2."""
    loop = Loop(tmp_path, measurement(cost=[1.0] * 4 + [2.0] * 4 + [3.0] * 4))
    loop.end_epoch(epoch=4)
    state = loop.data.dual
    counts = loop.data.counts
    assert (state.lam["cost"], state.round, counts.samples, counts.scored) == (pytest.approx(1.2), 1, 12, 12)
    assert state.measured["cost"] == 2.0
    # Residual sums -4, 0, 4: se^2 = 3/2 (16 + 16) / 144 = 1/3.
    assert state.measured_se["cost"] == pytest.approx(3**-0.5)
    (row,) = loop.history.rows
    expected = {
        "stage": "policy", "who": "cdpo", "epoch": 4, "step": 50, "round": 1, "dual/lambda": 0.2,
        "dual/lambda_next": pytest.approx(1.2), "dual/expected_cost": 2.0, "dual/violation": 2.0,
        "dual/expected_reward": pytest.approx(0.55), "dual/response_tokens": 2.0, "dual/unfinished": 0.0,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert loop.shown == [row]
    assert row["dual/c_limit"] == 0.0
    assert len(loop.data.fresh) == 1


def test_the_round_samples_the_prompts_it_chose(tmp_path):
    loop = Loop(tmp_path, measurement(), measurement())
    loop.end_epoch()
    loop.end_epoch()
    prompts, samples, seeds = zip(*loop.evaluator.requested, strict=True)
    assert samples == (4, 4)
    assert seeds[0] != seeds[1]
    for number, (requested, fresh) in enumerate(zip(prompts, loop.data.fresh, strict=True), 1):
        chosen = choose_prompts(6, 3, stream_seed(loop.callback.loop.seed, Stream.DUAL_PROMPTS, number))
        assert requested == tuple(f"p{i}" for i in chosen.tolist())
        assert set(fresh.prompt_N.tolist()) == set(chosen.tolist())


def test_label_flips_are_those_of_the_pairs_trained_on(tmp_path):
    """Rewards are 0 and costs p - 2 < 5: response 0 is preferred as soon as lambda > 0, so from 0 to 1 a tie ends in each pair."""
    loop = Loop(tmp_path, measurement(cost=[2.0] * 12), lam=0.0)
    loop.end_epoch()
    assert loop.history.rows[0]["dual/label_flips"] == 1.0


def test_every_k_epochs(tmp_path):
    loop = Loop(tmp_path, *[measurement()] * 2, every_k_epochs=3)
    for epoch in range(7):
        loop.end_epoch(epoch)
    assert [row["epoch"] for row in loop.history.rows] == [2, 5]


def test_without_refresh_the_pairs_stay_those_of_the_data(tmp_path):
    loop = Loop(tmp_path, measurement(), refresh=0)
    loop.end_epoch()
    assert loop.data.fresh == []


@pytest.mark.parametrize(
    ("costs", "lam", "c_limit", "alarm"),
    [
        ([-1.0] * 12, 0.2, 0.0, "pinned_at_zero"),
        ([8.0] * 12, 1.9, 0.8, "saturated"),
        ([8.0] * 12, 0.2, -3.0, "infeasible"),
        ([1.0] * 12, 0.2, 0.8, "none"),
    ],
)
def test_alarms(tmp_path, costs, lam, c_limit, alarm):
    """The data's lowest costs are -2, -1, 0, 1, 2, 3: their mean is 0.5, so a limit below it is infeasible."""
    loop = Loop(tmp_path, measurement(cost=costs), limit=c_limit, lam_max=2.0, lam=lam)
    loop.end_epoch()
    assert loop.data.dual.alarm == {"cost": alarm}


def test_the_lowest_cost_seen_counts_the_samples_too(tmp_path):
    """Samples of cost -10 for the three prompts of the round replace what the data had for these."""
    loop = Loop(tmp_path, measurement(cost=[-10.0] * 12))
    loop.end_epoch()
    chosen = set(choose_prompts(6, 3, stream_seed(loop.callback.loop.seed, Stream.DUAL_PROMPTS, 1)).tolist())
    expected = sum(-10 if p in chosen else p - 2 for p in range(6)) / 6
    assert loop.data.dual.lowest == {"cost": pytest.approx(expected)}


def test_the_best_feasible_round_is_kept(tmp_path):
    """Rewards less beta KL: 9 but infeasible, then 1, 3, 2 and 4 - 0.5 4 = 2 feasible: the third round's weights stay."""
    rounds = []
    for reward, costs, kl in [(9, 0.5, 0), (1, -0.5, 0), (3, 0.0, 0), (2, -0.5, 0), (4, -0.5, 4)]:
        made = measurement(cost=[costs - 0.1, costs, costs, costs + 0.1] * 3)
        value = torch.full((12,), float(reward), dtype=torch.float64)
        rounds.append(replace(made, scores=made.scores | {"reward": value}, policy_logp=made.reference_logp + kl))
    loop = Loop(tmp_path, *rounds)
    kept = tmp_path / "best_feasible.safetensors"
    loop.end_epoch(0, weight=1.0)
    assert not kept.exists()
    for epoch in range(1, 5):
        loop.end_epoch(epoch, weight=epoch + 1.0)
    assert loop.data.best == BestRound(3, 3.0)
    assert load_file(kept)["weight"].tolist() == [[3.0]]
    assert {path.name for path in tmp_path.iterdir()} == {"best_feasible.safetensors"}


def test_a_cost_that_is_not_finite_is_an_error_and_moves_nothing(tmp_path):
    loop = Loop(tmp_path, measurement(cost=[math.nan] + [0.0] * 11))
    with pytest.raises(NumericsError):
        loop.end_epoch()
    assert (loop.data.dual.lam["cost"], loop.data.dual.round) == (0.2, 0)
