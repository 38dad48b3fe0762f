"""Tiny random models of several families, and their log-probabilities computed by other means.

The weights are large enough for the probabilities of all tokens to differ.
"""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GemmaConfig, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from cdpo_lightning.models.lm.causal_lm import build
from cdpo_lightning.models.lm.response_logp import response_logp_of_rows

VOCABULARY = 11


def _config(family: type, **changes):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if family is not GPT2Config:
        sizes |= {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}
    special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
    return family(vocab_size=VOCABULARY, initializer_range=0.5, **sizes, **special, **changes)


@pytest.fixture(scope="session")
def make_model():
    """Make a model of a family, given as its configuration class: `make_model(GPT2Config, ...)`; float32, evaluation mode."""

    def make(family: type = LlamaConfig, **changes):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(_config(family, **changes)).eval()

    return make


@pytest.fixture(scope="session")
def make_llama():
    """Make a Llama as the package builds it, the same weights at every call: float32, evaluation mode, end token 1."""

    def make(hidden: int = 16, layers: int = 2, heads: int = 2, vocabulary: int = 20) -> nn.Module:
        sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers,
                 "num_attention_heads": heads, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
        return build(sizes, vocabulary, 0, 1, 3).eval()

    return make


@pytest.fixture(params=[LlamaConfig, GPT2Config, Qwen2Config, MistralConfig, GemmaConfig], ids=lambda c: c.model_type)
def any_model(request, make_model):
    return make_model(request.param)


@pytest.fixture(scope="session")
def logp_alone():
    """log pi(y|x), nats, from the model's own logits of one sequence, without a mask, in float64."""

    def logp(model, prompt, response):
        dtype, model = next(model.parameters()).dtype, model.double()
        ids = torch.tensor([[*prompt, *response]])
        logits = model(input_ids=ids, use_cache=False).logits[0]
        model.to(dtype)
        return sum(logits.log_softmax(-1)[len(prompt) - 1 + i, token] for i, token in enumerate(response))

    return logp


@pytest.fixture(scope="session")
def logp():
    """log pi of three responses to two prompts, nats, shape [3]."""
    rows = [((3, 4, 5), [(6, 7, 1), (8, 1)]), ((9,), [(10, 11, 12, 1)])]
    return lambda model: response_logp_of_rows(model, rows, 2, "32-true")


@pytest.fixture
def reloaded(tmp_path):
    """Save a model as an ordinary Hugging Face folder and load it again."""

    def reload(model):
        model.save_pretrained(tmp_path)
        return type(model).from_pretrained(tmp_path)

    return reload


@pytest.fixture(scope="session")
def trained():
    """Change the trainable parameters, as training would: the second matrices of the adapters start at zero."""

    def train(policy, step):
        with torch.no_grad():
            for parameter in policy.parameters():
                if parameter.requires_grad:
                    parameter.add_(step * torch.randn_like(parameter))
        return policy

    return train
