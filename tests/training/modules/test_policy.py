"""The policy's loss and gradient against TRL's formula; a killed run that goes on equals one that was never killed."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch.nn.functional import logsigmoid

from cdpo_lightning.config import ClosedFormConfig, PolicyConfig, TrainerConfig
from cdpo_lightning.constraints.constraint import Constraint, DualState
from cdpo_lightning.constraints.measures import Mean
from cdpo_lightning.constraints.updates import Newton
from cdpo_lightning.data.pairs.objectives import LagrangianPreference
from cdpo_lightning.data.pairs.pair_table import PairTable, draws
from cdpo_lightning.data.world import grammar
from cdpo_lightning.data.world.closed_form import make_world, preference_pairs
from cdpo_lightning.errors import NumericsError
from cdpo_lightning.evaluation.evaluator import PolicyEvaluator
from cdpo_lightning.models.lm.causal_lm import build, parameter_hash, word_tokenizer
from cdpo_lightning.models.lm.packed_forward import response_logp
from cdpo_lightning.models.lm.response_logp import response_logp_of_rows
from cdpo_lightning.scorers.oracle import OracleScorer
from cdpo_lightning.store.history import History
from cdpo_lightning.text.packing import pack
from cdpo_lightning.text.templates import Encoder, encode_response
from cdpo_lightning.training.callbacks.dual_update import DualUpdate
from cdpo_lightning.training.callbacks.round_log import RoundLog
from cdpo_lightning.training.data_modules.pair_data import PairDataModule, PolicyBatch
from cdpo_lightning.training.dual_loop import DualLoop
from cdpo_lightning.training.fit import FitSettings, FitStage, fit
from cdpo_lightning.training.modules.policy import PolicyModule

BETA = 0.3
PROMPTS = [(3, 4), (5,)]
RESPONSES = [[(6, 7, 1), (8, 1), (9, 9, 1)], [(2, 2, 2, 2, 1), (3, 1)]]
PAIR = torch.tensor([[0, 1], [2, 1], [4, 3]])  # of the five responses; the second is in two pairs


def tiny(seed=0, vocabulary=12, **sizes):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2} | sizes
    return build(sizes, vocabulary, 0, 1, seed).eval()


def batch(reference, target, beta=BETA):
    rows = list(zip(PROMPTS, RESPONSES, strict=True))
    logp = response_logp_of_rows(reference, rows, 8, "32-true").float()
    return PolicyBatch(rows=pack(rows), reference_logp=logp, pair=PAIR, target=torch.tensor(target), temperature=beta)


def policy(model, step=1, precision="32-true", **config):
    """The module as if in training at `step`, and what it logs."""
    module = PolicyModule(model, PolicyConfig(**{"beta": BETA} | config))
    module._trainer = SimpleNamespace(global_step=step, precision=precision, log_every_n_steps=1)
    logged = {}
    module.log_dict = lambda values, **_: logged.update(values)
    return module, logged


def alone(model, prompt, response):
    """log pi(y|x) from the model's own logits of one sequence."""
    logits = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(response)), list(response)].sum()


def trl_loss(model, reference, target):
    """TRL's sigmoid loss (trl.trainer.dpo_trainer, loss_type "sigmoid", label_smoothing 1 - p) for each pair, averaged.

    logits = (chosen_logps - rejected_logps) - (ref_chosen_logps - ref_rejected_logps)
    losses = -logsigmoid(beta * logits) * (1 - label_smoothing) - logsigmoid(-beta * logits) * label_smoothing
    """
    texts = [(p, y) for p, own in zip(PROMPTS, RESPONSES, strict=True) for y in own]
    losses = []
    for (rejected, chosen), p in zip(PAIR.tolist(), target, strict=True):
        logps = [alone(m, *texts[i]) for m in (model, reference) for i in (chosen, rejected)]
        logits = (logps[0] - logps[1]) - (logps[2] - logps[3]).detach()
        losses.append(-logsigmoid(BETA * logits) * p - logsigmoid(-BETA * logits) * (1 - p))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("target", [[1.0, 0.0, 1.0], [0.9, 0.5, 0.2]])
def test_loss_and_gradient_are_those_of_trls_formula(target):
    model, reference = tiny(1), tiny(0)
    loss = policy(model)[0].training_step(batch(reference, target), 0)
    loss.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected = trl_loss(model, reference, target)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("beta", [0.01, 0.3, 5.0])
def test_the_first_loss_is_ln_2(beta):
    """To rounding when the reference was run in other rows; to the last bit when it was run in the same ones."""
    model = tiny()
    made = batch(model, [1.0, 0.0, 0.3], beta)
    loss = policy(model, step=0, beta=beta)[0].training_step(made, 0)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-5)
    same = PolicyBatch(made.rows, response_logp(model, made.rows).detach(), made.pair, made.target, beta)
    assert policy(model, step=0, beta=beta)[0].training_step(same, 0).item() == torch.tensor(2.0).log().item()


@pytest.mark.parametrize("loss", ["ipo", "hinge"])
def test_the_first_loss_of_the_others(loss):
    """u = 0: (1/(2 beta))^2 and 1."""
    model = tiny()
    result = policy(model, step=0, loss=loss)[0].training_step(batch(model, [1.0, 0.0, 1.0]), 0)
    assert result.item() == pytest.approx({"ipo": (1 / (2 * BETA)) ** 2, "hinge": 1.0}[loss], abs=1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_wrong_reference_stops_the_run_at_its_first_step(precision):
    model = tiny(0)
    made = batch(model, [1.0, 1.0, 0.0])
    wrong = PolicyBatch(made.rows, made.reference_logp - 3.0, made.pair, made.target, BETA)
    with pytest.raises(NumericsError, match=r"step 0: policy and reference differ by 3 nats .* ln 2 = 0.6931"):
        policy(model, step=0, precision=precision)[0].training_step(wrong, 0)
    policy(model, step=1)[0].training_step(wrong, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reference_that_is_not_finite_stops_the_run_at_its_first_step(value):
    model = tiny(0)
    made = batch(model, [1.0, 1.0, 0.0])
    made.reference_logp[1] = value
    with pytest.raises(NumericsError, match="step 0"):
        policy(model, step=0)[0].training_step(made, 0)


def test_chosen_and_rejected_follow_the_label_of_the_moment():
    """Preferred are responses 1, 1, 3 under the first labels, and 0, 2, 4 when they are turned round; log-ratios are logp + 1."""
    model, reference = tiny(1), tiny(0)
    logp = response_logp_of_rows(model, list(zip(PROMPTS, RESPONSES, strict=True)), 8, "32-true")
    one, other = logp[[1, 1, 3]].mean().item(), logp[[0, 2, 4]].mean().item()
    for target, (chosen, rejected) in {(0.6, 1.0, 0.9): (one, other), (0.4, 0.0, 0.1): (other, one)}.items():
        module, logged = policy(model)
        made = batch(reference, list(target))
        made.reference_logp[:] = -1.0
        loss = module.training_step(made, 0)
        assert {name: float(value) for name, value in logged.items()} == pytest.approx(
            {
                "loss": loss.item(), "logp/chosen": chosen, "logp/rejected": rejected,
                "implicit_reward/chosen": BETA * (chosen + 1), "implicit_reward/rejected": BETA * (rejected + 1),
            },
            rel=1e-4,
        )  # fmt: skip
        assert not any(value.requires_grad for value in logged.values())


def test_the_anchor_adds_its_weighted_log_likelihood():
    """Two prompts, weights 1/4 and 3/4, then 1 on one response: -0.1 (0.25 l0 + 0.75 l1 + l3)/2 more."""
    model = tiny(1)
    made = batch(tiny(0), [1.0, 0.0, 1.0])
    rows = pack([(PROMPTS[0], RESPONSES[0][:2]), (PROMPTS[1], RESPONSES[1][:1])])
    both = replace(made, anchor_rows=rows, anchor_weight=torch.tensor([0.25, 0.75, 1.0]))
    module, _ = policy(model, anchor=0.1)
    more = module.training_step(both, 0) - module.training_step(made, 0)
    texts = [(PROMPTS[0], RESPONSES[0][0]), (PROMPTS[0], RESPONSES[0][1]), (PROMPTS[1], RESPONSES[1][0])]
    expected = -0.1 * sum(w * alone(model, *t) for w, t in zip([0.25, 0.75, 1.0], texts, strict=True)) / 2
    assert more.item() == pytest.approx(expected.item(), rel=1e-4)


class Killed(RuntimeError):
    """What ends a run before its time."""


class Kill(L.Callback):
    """Kills the run in the middle of an epoch."""

    def __init__(self, epoch, location):
        self.epoch, self.location = epoch, location

    def on_train_batch_end(self, trainer, *_):
        if (trainer.current_epoch, self.location) == (self.epoch, "midway"):
            raise Killed

    def on_train_epoch_start(self, trainer, *_):
        if (trainer.current_epoch, self.location) == (self.epoch, "start"):
            raise Killed


class Run:
    """A small constrained run on the closed-form world under its true scores."""

    tokenizer = word_tokenizer(grammar.vocabulary())
    world = make_world(ClosedFormConfig(prompts=8, responses=16), seed=0)
    constraints = (Constraint("cost", "cost", Mean(), -0.5),)
    config = PolicyConfig(epochs=6, refresh=2, refresh_window=2, labels="bernoulli", batch_size=16, pairs_per_row=4)

    def __init__(self, folder):
        self.folder = folder
        self.reference = tiny(0, len(self.tokenizer)).requires_grad_(False)
        scorers = {name: OracleScorer(self.world, name, name) for name in ("reward", "cost")}
        self.evaluator = PolicyEvaluator(scorers, self.reference, Encoder(self.tokenizer, "plain", 16, 8), 64, 64, "32-true")

    def table(self):
        pairs = preference_pairs(self.world, self.world.prompts, 4, 0)
        texts = [(pair.prompt, text) for pair in pairs for text in pair.responses]
        prompts = tuple(self.evaluator.encoder.prompt(prompt) for prompt in self.world.prompts)
        number = torch.tensor([self.world.prompts.index(prompt) for prompt, _ in texts])
        ids = tuple(tuple(encode_response(text, self.tokenizer)) for _, text in texts)
        rows = [(prompts[p], [y]) for p, y in zip(number.tolist(), ids, strict=True)]
        logp = response_logp_of_rows(self.reference, rows, 64, "32-true")
        pair = torch.arange(len(texts)).view(-1, 2)
        scores = {name: scorer.score(texts) for name, scorer in self.evaluator.scorers.items()}
        return PairTable(prompts, ids, number, scores, logp, pair, draws(len(pair), 0))

    def train(self, *callbacks, resume=False):
        """Fits to the end, or to a kill; the trained module and its data."""
        objective = LagrangianPreference(self.config.beta, self.config.labels, self.constraints)
        data = PairDataModule(self.table(), self.config, objective, DualState(lam={"cost": 0.2}), seed=3)
        module = PolicyModule(copy.deepcopy(self.reference).requires_grad_(True), self.config)
        history = History(self.folder / "history.csv", resume)
        loop = DualLoop(self.constraints, Newton(0.5, 1.0, 20.0), self.config.beta, 1, 6, 4, seed=3)
        log = RoundLog(history, "cdpo", lambda row: None)
        update = DualUpdate(loop, self.evaluator, self.world.prompts, log, self.folder, self.config.refresh)
        settings = FitSettings(TrainerConfig(), history, self.folder / "checkpoints", seed=3)
        stage = FitStage("policy", self.config.epochs, self.folder / "checkpoints", who="cdpo")
        fit(module, data, stage, settings, [update, *callbacks])
        return module, data

    def dual(self):
        """lambda round by round, as history.csv has it."""
        rows = History(self.folder / "history.csv", resume=True).rows
        return [(row["epoch"], row["dual/lambda"], row["dual/expected_cost"]) for row in rows if "round" in row]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that was never killed."""
    run = Run(tmp_path_factory.mktemp("whole"))
    return run, *run.train()


def test_the_run_moves_lambda_and_the_weights(whole):
    run, module, data = whole
    assert data.dual.round == 6
    assert len({lam for _, lam, _ in run.dual()}) == 6
    assert parameter_hash(module.model) != parameter_hash(run.reference)
    assert len(data.fresh) == 2


@pytest.mark.parametrize("location", ["start", "midway"])
def test_a_resumed_run_equals_an_uninterrupted_one(whole, tmp_path, location):
    """Three epochs and three: weights to the last bit, lambda round by round, the pairs, and every row of the history."""
    first, module, data = whole
    run = Run(tmp_path)
    with pytest.raises(Killed):
        run.train(Kill(3, location))
    torch.manual_seed(99)
    resumed, again = run.train(resume=True)
    assert parameter_hash(resumed.model) == parameter_hash(module.model)
    assert again.dual == data.dual
    assert again.table.responses == data.table.responses
    labels = [table.target(table.scores["reward"], "bernoulli") for table in (again.table, data.table)]
    assert torch.equal(*labels)
    assert run.dual() == first.dual()
    texts = [(r.folder / "history.csv").read_text().splitlines() for r in (run, first)]
    assert texts[0] == texts[1]
