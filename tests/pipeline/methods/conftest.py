"""What a method is trained with, with a stub in place of the evaluator."""

import pytest
import torch

from cdpo_lightning.constraints.constraint import Constraint
from cdpo_lightning.constraints.measures import Mean
from cdpo_lightning.data.pairs.pair_table import PairTable, draws
from cdpo_lightning.pipeline.base_model import make_trainables
from cdpo_lightning.pipeline.constants import TrainingPairs
from cdpo_lightning.pipeline.prepare import MethodInputs


@pytest.fixture
def method_inputs(config, settings, inference):
    """`method_inputs(evaluator, constraints, prompts, exact)`: inputs of a method with an empty table of pairs."""
    limited = (Constraint("cost", "cost", Mean(), -0.5),)

    def make(evaluator, constraints=limited, prompts=("p0", "p1"), exact=None):
        table = PairTable(
            prompts=tuple((3, i + 4) for i in range(len(prompts))),
            responses=(),
            prompt_N=torch.empty(0, dtype=torch.long),
            scores={},
            reference_logp_N=torch.empty(0),
            pair_M2=torch.empty(0, 2, dtype=torch.long),
            draw_M=draws(0, 0),
        )
        pairs = TrainingPairs(table, [], list(prompts))
        trainables = make_trainables(config, torch.device("cpu"))
        return MethodInputs(evaluator, constraints, pairs, trainables, inference, settings, [], exact)

    return make
