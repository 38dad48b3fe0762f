"""Liger's kernels are taken only where they give our values and gradients; the real ones where they are installed."""

import importlib.util
import os

import pytest
import torch

from cdpo_lightning.maths.logprobs import token_logp
from cdpo_lightning.models.liger import agrees, fastest_token_logp, fused_token_logp

CPU = torch.device("cpu")


class OneForAll(torch.autograd.Function):
    """The right value, and a gradient that takes the first token's upstream gradient for all."""

    @staticmethod
    def forward(ctx, hidden, weight, target):
        ctx.save_for_backward(hidden, weight, target)
        return token_logp(hidden, weight, target)

    @staticmethod
    def backward(ctx, upstream):
        hidden, weight, target = (t.detach() for t in ctx.saved_tensors)
        with torch.enable_grad():
            hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
            value = token_logp(hidden, weight, target)
        return (*torch.autograd.grad(value, [hidden, weight], upstream[:1].expand_as(upstream)), None)


def without_it(*_):
    raise ValueError("reduction='none' is not supported")


@pytest.mark.parametrize(
    ("fused", "right"),
    [
        (token_logp, True),
        (lambda h, w, t, b: token_logp(h, w, t, b) + 0.1, False),
        (lambda h, w, t, _: OneForAll.apply(h, w, t), False),
        (without_it, False),
    ],
)
def test_only_what_agrees_is_taken(fused, right):
    assert agrees(fused, CPU) == right


def test_on_a_processor_it_is_ours():
    hidden, weight, target = torch.randn(3, 4), torch.randn(7, 4), torch.tensor([1, 2, 3])
    assert torch.equal(fastest_token_logp(hidden, weight, target), token_logp(hidden, weight, target))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="liger_kernel is not installed")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="without a GPU its kernels need TRITON_INTERPRET=1")
def test_the_real_kernels_agree():
    assert agrees(fused_token_logp(), CPU)
