"""Products of bf16 numbers computed in float32: the float64 values rounded once, with and without autocast."""

import pytest
import torch
from torch.nn import functional as F

from cdpo_lightning import compat
from cdpo_lightning.models.kernels import products
from cdpo_lightning.models.kernels.products import MIN_ROWS, faster_in_float32, linear_via_float32

WIDE, NARROW = 24, 10


@pytest.fixture
def factors():
    """Input [2, MIN_ROWS, WIDE], weight and bias, bf16 with gradient."""
    draw = torch.Generator().manual_seed(0)
    shapes = (2, MIN_ROWS, WIDE), (NARROW, WIDE), (NARROW,)
    return [torch.randn(shape, generator=draw).bfloat16().requires_grad_() for shape in shapes]


def exact(factors, upstream):
    """Value and gradients in float64."""
    leaves = [t.detach().double().requires_grad_() for t in factors]
    value = F.linear(*leaves)
    return [value, *torch.autograd.grad(value, leaves, upstream.double())]


@pytest.mark.parametrize("autocast", [False, True])
def test_value_and_gradients_are_the_rounded_ones_of_float64(factors, autocast):
    upstream = torch.linspace(-1, 1, 2 * MIN_ROWS * NARROW).view(2, MIN_ROWS, NARROW).bfloat16()
    expected = exact(factors, upstream)
    leaves = [t.detach().float().requires_grad_() for t in factors] if autocast else factors
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = linear_via_float32(*leaves)
    assert value.dtype == torch.bfloat16
    result = [value, *torch.autograd.grad(value, leaves, upstream)]
    for got, want in zip(result, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=2**-7, atol=2**-5)


def test_the_result_is_the_rounded_float32_product(factors):
    """Only the result is rounded, no partial sum."""
    value = linear_via_float32(*factors)
    assert torch.equal(value, F.linear(*(factor.float() for factor in factors)).bfloat16())


def test_a_frozen_weight_gets_no_gradient(factors):
    factors[1].requires_grad_(False)
    linear_via_float32(factors[0], factors[1], None).sum().backward()
    assert factors[1].grad is None
    assert factors[0].grad is not None


@pytest.mark.parametrize(
    ("rows", "dtype"), [(MIN_ROWS - 1, torch.bfloat16), (MIN_ROWS, torch.float32), (MIN_ROWS, torch.float64), (0, torch.bfloat16)]
)
def test_few_rows_and_other_types_are_left_to_torch(monkeypatch, rows, dtype):
    monkeypatch.setattr(products._Float32Product, "apply", None)
    given = torch.ones(rows, WIDE, dtype=dtype), torch.ones(NARROW, WIDE, dtype=dtype), torch.ones(NARROW, dtype=dtype)
    assert torch.equal(linear_via_float32(*given), F.linear(*given))


def test_no_float32_tensor_is_kept_for_the_backward_pass(factors):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
        linear_via_float32(factors[0], factors[1], None)
    assert set(kept) == {torch.bfloat16}


@pytest.mark.parametrize(("device", "amx", "faster"), [("cuda", False, False), ("cpu", True, False), ("cpu", False, True)])
def test_only_processors_without_amx_are_faster_in_float32(monkeypatch, device, amx, faster):
    monkeypatch.setattr(compat, "processor_has_amx", lambda: amx)
    assert faster_in_float32(torch.device(device)) == faster
