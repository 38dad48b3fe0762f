"""Tiny random models of several families; weights large enough that every token's probability is its own."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GemmaConfig, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from cdpo_lightning.evaluation.evaluator import logp_of

VOCABULARY = 11


def _config(family: type, **changes):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if family is not GPT2Config:
        sizes |= {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}
    special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
    return family(vocab_size=VOCABULARY, initializer_range=0.5, **sizes, **special, **changes)


@pytest.fixture(scope="session")
def make_model():
    """A model of a family (its configuration class): `make_model(GPT2Config, ...)`, in evaluation mode, float32."""

    def make(family: type = LlamaConfig, **changes):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(_config(family, **changes)).eval()

    return make


@pytest.fixture(params=[LlamaConfig, GPT2Config, Qwen2Config, MistralConfig, GemmaConfig], ids=lambda c: c.model_type)
def any_model(request, make_model):
    return make_model(request.param)


@pytest.fixture(scope="session")
def logp_alone():
    """log pi(y|x) by the plainest way there is: the model's own logits of one sequence, no mask, float64."""

    def logp(model, prompt, response):
        dtype, model = next(model.parameters()).dtype, model.double()
        ids = torch.tensor([[*prompt, *response]])
        logits = model(input_ids=ids, use_cache=False).logits[0]
        model.to(dtype)
        return sum(logits.log_softmax(-1)[len(prompt) - 1 + i, token] for i, token in enumerate(response))

    return logp


@pytest.fixture(scope="session")
def logp():
    """log pi of three responses to two prompts, [3]."""
    rows = [((3, 4, 5), [(6, 7, 1), (8, 1)]), ((9,), [(10, 11, 12, 1)])]
    return lambda model: logp_of(model, rows, 2, "32-true")


@pytest.fixture(scope="session")
def trained():
    """A policy with adapters as after some steps: their second matrices, which start at zero, do something."""

    def train(policy, step):
        with torch.no_grad():
            for parameter in policy.parameters():
                if parameter.requires_grad:
                    parameter.add_(step * torch.randn_like(parameter))
        return policy

    return train
