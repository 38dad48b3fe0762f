"""Times one dual round, and the part of it that is neither sampling nor scoring; prints one JSON line.

    python benchmarks/dual_round.py --model HF_FOLDER --pairs pku_saferlhf_pairs.jsonl --num-pairs 24 --samples 4

The round is run by the callback of training: samples of `--num-pairs` prompts, reward, cost and reference log-probabilities, the
update of lambda, the labels of all pairs of the file and new on-policy pairs. The scorers have the model's shape and a zero head.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness
import torch
from pair_step import table_of
from transformers import AutoTokenizer

from cdpo_lightning.config import ConstraintConfig, PolicyConfig
from cdpo_lightning.constraints.build import make_constraints
from cdpo_lightning.constraints.constraint import DualState
from cdpo_lightning.constraints.updates import make_update
from cdpo_lightning.data.pairs.objectives import LagrangianPreference
from cdpo_lightning.evaluation.evaluator import Measurement, PolicyEvaluator
from cdpo_lightning.models.heads.score_model import from_causal_lm
from cdpo_lightning.scorers.model_scorer import ModelScorer
from cdpo_lightning.store.history import History
from cdpo_lightning.text.templates import Encoder
from cdpo_lightning.training.callbacks.dual_update import DualUpdate
from cdpo_lightning.training.callbacks.round_log import RoundLog
from cdpo_lightning.training.data_modules.pair_data import PairDataModule
from cdpo_lightning.training.dual_loop import DualLoop


class TimedEvaluator(PolicyEvaluator):
    """An evaluator that records the seconds of its last measurement."""

    def measure(self, *args: Any) -> Measurement:
        """Return the measurement, and keep the seconds that it took."""
        start = time.perf_counter()
        result = super().measure(*args)
        object.__setattr__(self, "seconds", time.perf_counter() - start)
        return result


def dual_loop(policy: PolicyConfig, samples: int) -> DualLoop:
    """Return the dual loop with the default constraint, measured on all prompts after every epoch."""
    config = ConstraintConfig(kind="dual", samples_per_prompt=samples)
    return DualLoop(
        constraints=make_constraints(config),
        update=make_update(config),
        beta=policy.beta,
        every_k_epochs=1,
        prompts=0,
        samples_per_prompt=samples,
        seed=0,
    )


def main() -> None:
    """Load, run one round and report."""
    parser = harness.arguments(__doc__, pairs=24)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=48)
    args = parser.parse_args()
    if not args.model:
        parser.error("--model: a Hugging Face folder is needed, for its tokenizer")
    model, pairs = harness.load_model(args), harness.load_pairs(args)
    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    encoder = Encoder(tokenizer, "chat" if tokenizer.chat_template else "plain", 512, args.new_tokens)
    scorer = from_causal_lm(model, 0).to(args.device, harness.DTYPES[args.precision])
    scorers = {
        name: ModelScorer(scorer, tokenizer, "plain", 512, args.batch_size, args.precision, name) for name in ("reward", "cost")
    }
    evaluator = TimedEvaluator(scorers, model, encoder, args.batch_size, 256, args.precision)
    policy = PolicyConfig(refresh=1)
    loop = dual_loop(policy, args.samples)
    objective = LagrangianPreference(policy.beta, policy.labels, loop.constraints)
    table = table_of(pairs, torch.zeros(2 * len(pairs.rows)))
    data = PairDataModule(table, policy, objective, DualState(lam={"cost": 1.0}), 0)
    prompts = [text[0] for text in pairs.texts]
    with tempfile.TemporaryDirectory() as folder:
        location = Path(folder)
        log = RoundLog(History(location / "history.csv", False), "cdpo", lambda row: None)
        callback = DualUpdate(loop, evaluator, prompts, log, location, policy.refresh)
        trainer: Any = SimpleNamespace(current_epoch=0, global_step=1, datamodule=data, strategy=None)
        module: Any = SimpleNamespace(model=model, log_dict=lambda *_, **__: None)
        start = time.perf_counter()
        callback.on_train_epoch_end(trainer, module)
        seconds = time.perf_counter() - start
    outside = seconds - evaluator.seconds  # type: ignore[attr-defined]
    harness.report(
        who="dual_round",
        prompts=len(prompts),
        samples=args.samples,
        seconds=seconds,
        outside_seconds=outside,
        outside_share=outside / seconds,
        kept_best=data.best.number > 0,
        precision=args.precision,
    )


if __name__ == "__main__":
    main()
