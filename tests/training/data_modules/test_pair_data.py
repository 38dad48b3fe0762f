"""The data module owns the multipliers: a new loader has new labels, and a checkpoint holds all that it remembers."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from cdpo_lightning.config import PolicyConfig
from cdpo_lightning.constraints.constraint import Constraint, DualState
from cdpo_lightning.constraints.measures import Mean
from cdpo_lightning.data.pairs.objectives import LagrangianPreference
from cdpo_lightning.data.pairs.pair_table import PairTable, draws
from cdpo_lightning.evaluation.evaluator import SampleCounts
from cdpo_lightning.training.data_modules.pair_data import BestRound, PairDataModule

BETA = 0.5
CONSTRAINTS = (Constraint("cost", "cost", Mean(), 0.0),)


def table(pairs=10, prompts=3, seed=0, offset=0):
    """Each pair has two responses of its own; log pi_ref of response i is -i - offset, which numbers it."""
    count = 2 * pairs
    return PairTable(
        prompts=tuple((9, i) for i in range(prompts)),
        responses=tuple((*(5,) * (i % 4), 20 + i + offset, 1) for i in range(count)),
        prompt_N=torch.arange(count) // 2 % prompts,
        scores={"reward": torch.arange(count, dtype=torch.float64) / 10, "cost": (torch.arange(count) % 3 - 1).double()},
        reference_logp_N=-torch.arange(count, dtype=torch.float64) - offset,
        pair_M2=torch.arange(count).view(-1, 2),
        draw_M=draws(pairs, seed),
    )


@pytest.fixture(params=[1, 3], ids=["a row a pair", "3 pairs a row"])
def make(request):
    def module(lam=0.0, pairs=None, reference=None, **policy):
        values = {"batch_size": 6, "pairs_per_row": request.param, "refresh_window": 2, "beta": BETA} | policy
        config = PolicyConfig(**values)
        objective = LagrangianPreference(BETA, config.labels, CONSTRAINTS)
        made = PairDataModule(pairs or table(), config, objective, DualState(lam={"cost": lam}), 0, reference)
        made.trainer = SimpleNamespace(current_epoch=0)
        return made

    return module


def set_lambda(data, lam):
    data.dual = dataclasses.replace(data.dual, lam={"cost": lam})


def target(pairs, lam, kind):
    """The labels under r - lam c."""
    return pairs.target(pairs.scores["reward"] - lam * pairs.scores["cost"], kind)


def numbers(batch):
    """The numbers of both responses of each pair, [B][2]."""
    return [[round(-x) for x in ends] for ends in batch.reference_logp[batch.pair].tolist()]


def labels(data):
    """The label of each pair of the data by the number of its response 0."""
    result = {}
    for batch in data.train_dataloader():
        result |= {first: float(label) for (first, _), label in zip(numbers(batch), batch.target, strict=True)}
    return [result[i] for i in sorted(result)]


@pytest.mark.parametrize("kind", ["bernoulli", "soft", "argmax"])
def test_the_loaders_labels_are_those_of_the_present_lambda(make, kind):
    data = make(lam=0.0, labels=kind)
    for lam in (0.0, 1.5, 0.2, 4.0):
        set_lambda(data, lam)
        assert labels(data) == pytest.approx(target(table(), lam, kind).tolist())
    assert labels(data) != pytest.approx(target(table(), 0.0, kind).tolist())


def test_a_batch_holds_tokens_constants_and_labels_of_the_same_responses(make):
    for batch in make().train_dataloader():
        owner = batch.rows.response_N
        tokens = [tuple(batch.rows.target_N[owner == i].tolist()) for i in range(batch.rows.responses)]
        assert [table().responses[round(-x)] for x in batch.reference_logp.tolist()] == tokens
        assert batch.reference_logp.dtype == batch.target.dtype == torch.float32
        assert len(batch.pair) == len(batch.target)
        assert batch.anchor_rows is None
        assert torch.equal(batch.to("cpu").pair, batch.pair)


def test_every_response_is_read_behind_its_own_prompt(make):
    for batch in make().train_dataloader():
        width = batch.rows.input_ids_BT.shape[1]
        row_of = {int(r): int(s) // width for r, s in zip(batch.rows.response_N, batch.rows.source_N, strict=True)}
        for response, logp in enumerate(batch.reference_logp.tolist()):
            prompt = round(-logp) // 2 % 3
            assert batch.rows.input_ids_BT[row_of[response], :2].tolist() == [9, prompt]


def test_every_pair_once_in_the_order_of_the_epoch(make):
    data = make()

    def order(epoch):
        data.trainer.current_epoch = epoch
        return [ends for batch in data.train_dataloader() for ends in numbers(batch)]

    assert sorted(order(0)) == [[2 * i, 2 * i + 1] for i in range(10)]
    assert order(0) != order(1)
    assert order(1) == order(1)


def test_refresh_keeps_the_last_rounds_of_the_window(make):
    data = make()
    fresh = [table(pairs=n, seed=n, offset=100 * n) for n in (1, 2, 3)]
    for part in fresh:
        data.refresh(part)
    assert data.fresh == fresh[1:]
    seen = [ends for batch in data.train_dataloader() for ends in numbers(batch)]
    expected = [table(), *fresh[1:]]
    assert sorted(seen) == [[round(-x) for x in t.reference_logp_N[p].tolist()] for t in expected for p in t.pair_M2]


def test_state_goes_through_a_checkpoint(make, tmp_path):
    data = make(lam=0.3)
    data.refresh(table(pairs=2, seed=5, offset=100))
    data.dual = DualState(
        lam={"cost": 1.25},
        update_memory={"cost": {"integral": 0.5}},
        measure_memory={"cost": {"threshold": 1.5}},
        round=3,
        lowest={"cost": -2.0},
        measured={"cost": -0.5},
        measured_se={"cost": 0.1},
        alarm={"cost": "saturated"},
    )
    data.counts, data.best = SampleCounts(7, 70, 5), BestRound(2, 0.25)
    torch.save(data.state_dict(), tmp_path / "state.pt")
    again = make(lam=0.3)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (again.dual, again.counts, again.best) == (data.dual, data.counts, data.best)
    assert again.table.responses == data.table.responses
    assert torch.equal(target(again.table, 1.25, "bernoulli"), target(data.table, 1.25, "bernoulli"))
    assert labels(again) == labels(data)


@pytest.mark.parametrize("pairs", [10, 48])
def test_a_batch_holds_as_many_pairs_as_it_should(make, pairs):
    """At most batch_size, and on average nearly so, also where a prompt has fewer pairs than a row may hold."""
    for prompts in (3, 24):
        sizes = [len(b.target) for b in make(pairs=table(pairs, prompts), batch_size=6).train_dataloader()]
        assert sum(sizes) == pairs
        assert max(sizes) <= 6
        assert len(sizes) <= -(-pairs // 6) + 1
    assert max(len(b.target) for b in make(batch_size=2).train_dataloader()) <= 2


def reference_samples(prompts=3):
    """The anchor: three reference responses to each prompt, of rewards 0, 1, 2 and costs 0, 1, 2."""
    number = torch.arange(3 * prompts)
    return PairTable(
        prompts=tuple((9, p) for p in range(prompts)),
        responses=tuple((60 + 10 * p + k, 1) for p in range(prompts) for k in range(3)),
        prompt_N=number // 3,
        scores={"reward": (number % 3).double(), "cost": (number % 3).double()},
        reference_logp_N=torch.zeros(3 * prompts, dtype=torch.float64),
        pair_M2=torch.empty(0, 2, dtype=torch.long),
        draw_M=draws(0, 0),
    )


def softmax(logits):
    return [math.exp(x) / sum(math.exp(y) for y in logits) for x in logits]


def test_the_anchor_rides_along_whole_with_the_weights_of_the_present_lambda(make):
    """Weights are the softmax of k (1 - lam) / beta over k = 0, 1, 2: at lambda = 2 those of lambda = 0, turned round."""
    data = make(reference=reference_samples(), anchor=0.1)
    for lam in (0.0, 2.0, 0.3):
        set_lambda(data, lam)
        weight = softmax([k * (1 - lam) / BETA for k in range(3)])
        for batch in data.train_dataloader():
            prompts = batch.anchor_rows.input_ids_BT[:, 1].tolist()
            own = [token for p in prompts for k in range(3) for token in (60 + 10 * p + k, 1)]
            assert batch.anchor_rows.target_N.tolist() == own
            assert batch.anchor_weight.tolist() == pytest.approx(weight * len(prompts))


def test_the_anchor_favours_no_prompt(make):
    """12 prompts, more than ride along with a batch: over 60 epochs each comes as often as the others, to 5 errors."""
    reference = reference_samples(prompts=12)
    data = make(pairs=table(pairs=48, prompts=12), reference=reference, anchor=0.1, batch_size=24)
    count = torch.zeros(12)
    for data.trainer.current_epoch in range(60):
        for batch in data.train_dataloader():
            count[batch.anchor_rows.input_ids_BT[:, 1]] += 1
    assert (count - count.mean()).abs().max() < 5 * count.mean() ** 0.5


def test_an_anchor_of_weight_zero_is_off(make):
    assert next(iter(make(reference=reference_samples()).train_dataloader())).anchor_rows is None
