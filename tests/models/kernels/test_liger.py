"""Liger's kernels are used only if they give our values and gradients; the real ones are tested where installed."""

import importlib.util
import os

import pytest
import torch

from cdpo_lightning.models.kernels import liger
from cdpo_lightning.models.kernels.liger import fastest_token_logp, liger_token_logp, matches_token_logp
from cdpo_lightning.models.kernels.logprobs import token_logp

CPU = torch.device("cpu")


class FirstGradientForAll(torch.autograd.Function):
    """The right value, but a gradient that uses the first token's upstream gradient for all tokens."""

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
        (lambda h, w, t, _: FirstGradientForAll.apply(h, w, t), False),
    ],
)
def test_wrong_values_and_wrong_gradients_are_detected(fused, right):
    assert matches_token_logp(fused, CPU) == right


def test_the_check_runs_in_float32_with_gradient_in_any_context():
    requested = []

    def watched(hidden, *rest):
        requested.append((torch.is_grad_enabled(), (hidden @ hidden.T).dtype))
        return token_logp(hidden, *rest)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert matches_token_logp(watched, CPU)
    assert requested == [(True, torch.float32)]


def test_on_a_processor_our_function_is_used():
    hidden, weight, target = torch.randn(3, 4), torch.randn(7, 4), torch.tensor([1, 2, 3])
    assert torch.equal(fastest_token_logp(hidden, weight, target), token_logp(hidden, weight, target))


def test_a_usable_kernel_gets_tensors_of_the_autocast_type(monkeypatch):
    given = []
    monkeypatch.setattr(liger, "_fused_function_for", lambda _: lambda *tensors: given.extend(tensors) or torch.tensor([7.0]))
    with torch.autocast("cpu", torch.bfloat16):
        result = fastest_token_logp(torch.randn(3, 4), torch.randn(7, 4), torch.tensor([1, 2, 3]), torch.randn(7))
    assert result.tolist() == [7.0]
    assert [t.dtype for t in given] == [torch.bfloat16, torch.bfloat16, torch.int64, torch.bfloat16]


@pytest.mark.parametrize("problem", [ImportError("no triton"), ValueError("reduction='none' is not supported")])
def test_the_reason_why_a_kernel_is_not_used_is_logged(monkeypatch, caplog, problem):
    def broken():
        raise problem

    monkeypatch.setattr(liger, "liger_token_logp", broken)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert liger._fused_function_for.__wrapped__(torch.device("cuda")) is None
    assert str(problem) in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="liger_kernel is not installed")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="without a GPU its kernels need TRITON_INTERPRET=1")
def test_the_real_kernels_match():
    assert matches_token_logp(liger_token_logp(), CPU)
