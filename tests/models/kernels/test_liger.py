"""Liger's kernels are taken only where they give our values and gradients; the real ones where they are installed."""

import importlib.util
import os

import pytest
import torch

from cdpo_lightning.models.kernels import liger
from cdpo_lightning.models.kernels.liger import agrees, fastest_token_logp, fused_token_logp
from cdpo_lightning.models.kernels.logprobs import token_logp

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


@pytest.mark.parametrize(
    ("fused", "right"),
    [
        (token_logp, True),
        (lambda h, w, t, b: token_logp(h, w, t, b) + 0.1, False),
        (lambda h, w, t, _: OneForAll.apply(h, w, t), False),
    ],
)
def test_only_what_agrees_is_taken(fused, right):
    assert agrees(fused, CPU) == right


def test_it_is_checked_in_float32_with_gradient_whatever_pass_asks_first():
    requested = []

    def watched(hidden, *rest):
        requested.append((torch.is_grad_enabled(), (hidden @ hidden.T).dtype))
        return token_logp(hidden, *rest)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert agrees(watched, CPU)
    assert requested == [(True, torch.float32)]


def test_on_a_processor_it_is_ours():
    hidden, weight, target = torch.randn(3, 4), torch.randn(7, 4), torch.tensor([1, 2, 3])
    assert torch.equal(fastest_token_logp(hidden, weight, target), token_logp(hidden, weight, target))


def test_where_it_is_usable_it_is_used_in_the_type_that_was_asked(monkeypatch):
    given = []
    monkeypatch.setattr(liger, "_usable_on", lambda _: lambda *tensors: given.extend(tensors) or torch.tensor([7.0]))
    with torch.autocast("cpu", torch.bfloat16):
        result = fastest_token_logp(torch.randn(3, 4), torch.randn(7, 4), torch.tensor([1, 2, 3]), torch.randn(7))
    assert result.tolist() == [7.0]
    assert [t.dtype for t in given] == [torch.bfloat16, torch.bfloat16, torch.int64, torch.bfloat16]


@pytest.mark.parametrize("problem", [ImportError("no triton"), ValueError("reduction='none' is not supported")])
def test_one_that_cannot_be_used_is_left_with_the_reason(monkeypatch, caplog, problem):
    def broken():
        raise problem

    monkeypatch.setattr(liger, "fused_token_logp", broken)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert liger._usable_on.__wrapped__(torch.device("cuda")) is None
    assert str(problem) in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="liger_kernel is not installed")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="without a GPU its kernels need TRITON_INTERPRET=1")
def test_the_real_kernels_agree():
    assert agrees(fused_token_logp(), CPU)
