"""The true scores of the closed-form world."""

import pytest

from cdpo_lightning.config import ClosedFormConfig
from cdpo_lightning.data.world.closed_form import make_world
from cdpo_lightning.scorers.oracle import OracleScorer

WORLD = make_world(ClosedFormConfig(prompts=8, responses=16), seed=0)


@pytest.mark.parametrize(("name", "column"), [("reward", 0), ("cost", 1)])
def test_the_oracle_tells_the_truth(name, column):
    texts = [(prompt, response) for prompt in WORLD.prompts for response in (*WORLD.responses, "nonsense")]
    expected = [WORLD.truth(*text)[column] for text in texts]
    assert OracleScorer(WORLD, name, "o").score(texts).tolist() == expected
