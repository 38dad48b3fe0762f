"""Passes without gradient, and where frozen models are kept."""

from dataclasses import replace

import pytest
import torch

from cdpo_lightning.config import TrainerConfig
from cdpo_lightning.pipeline.inference import make_inference

ROWS = [((3,), [(4, 1), (5, 6, 7, 1)]), ((3, 4, 5), [(1,)]), ((6, 7), [(8, 1)])]


def alone(model, prompt, response):
    """log pi(y|x) from the model's own logits of one sequence."""
    with torch.no_grad():
        logp = model(torch.tensor([[*prompt, *response]])).logits[0].double().log_softmax(-1)
    return sum(float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(response))


def test_logp_is_that_of_each_response_in_order(inference, make_model):
    model = make_model()
    result = inference.logp(model, ROWS)
    assert result.dtype == torch.float64
    assert not result.requires_grad
    assert result.tolist() == pytest.approx([alone(model, p, y) for p, every in ROWS for y in every], rel=1e-4)


def test_no_rows_have_no_log_probabilities(inference, make_model):
    assert inference.logp(make_model(), []).shape == (0,)


def test_a_kept_model_is_in_evaluation_mode(inference, make_model):
    model = make_model().train()
    assert inference.keep(model) is model
    assert not model.training


def test_an_offloaded_model_is_in_the_hosts_memory_and_works_as_before(inference, make_model):
    """On the CPU both memories are the same; the device on which it will work is noted."""
    model = make_model()
    expected = inference.logp(model, ROWS)
    kept = replace(inference, offload=True).keep(model.train())
    assert not kept.training
    assert {p.device.type for p in kept.parameters()} == {"cpu"}
    torch.testing.assert_close(inference.logp(kept, ROWS), expected, rtol=0, atol=0)


def test_the_settings_are_those_of_the_trainer(config):
    trainer = TrainerConfig(precision="bf16-mixed", inference_batch=7, park_frozen=True)
    made = make_inference(replace(config, trainer=trainer, model=replace(config.model, compile=True)))
    assert (made.precision, made.batch_size, made.offload, made.compile) == ("bf16-mixed", 7, True, True)
    assert made.device.type == "cpu", "trainer.accelerator is cpu"
