"""Products of bf16 numbers by way of float32: what float64 gives, rounded once, with and without autocast and gradient."""

import pytest
import torch
from torch.nn import functional as F

from cdpo_lightning.models.kernels import products
from cdpo_lightning.models.kernels.products import FEW_ROWS, better_in_float32, linear

WIDE, NARROW = 24, 10


@pytest.fixture
def factors():
    """Input [2, FEW_ROWS, WIDE], weight and bias, bf16 with gradient."""
    draw = torch.Generator().manual_seed(0)
    shapes = (2, FEW_ROWS, WIDE), (NARROW, WIDE), (NARROW,)
    return [torch.randn(shape, generator=draw).bfloat16().requires_grad_() for shape in shapes]


def exact(factors, upstream):
    """Value and gradients in float64."""
    leaves = [t.detach().double().requires_grad_() for t in factors]
    value = F.linear(*leaves)
    return [value, *torch.autograd.grad(value, leaves, upstream.double())]


@pytest.mark.parametrize("autocast", [False, True])
def test_value_and_gradients_are_those_of_float64_rounded(factors, autocast):
    upstream = torch.linspace(-1, 1, 2 * FEW_ROWS * NARROW).view(2, FEW_ROWS, NARROW).bfloat16()
    expected = exact(factors, upstream)
    leaves = [t.detach().float().requires_grad_() for t in factors] if autocast else factors
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = linear(*leaves)
    assert value.dtype == torch.bfloat16
    result = [value, *torch.autograd.grad(value, leaves, upstream)]
    for got, want in zip(result, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=2**-7, atol=2**-5)


def test_it_is_the_float32_product_that_is_taken(factors):
    """One rounding, of the result: no partial sum in bf16."""
    value = linear(*factors)
    assert torch.equal(value, F.linear(*(factor.float() for factor in factors)).bfloat16())


def test_a_frozen_weight_gets_no_gradient(factors):
    factors[1].requires_grad_(False)
    linear(factors[0], factors[1], None).sum().backward()
    assert factors[1].grad is None
    assert factors[0].grad is not None


@pytest.mark.parametrize(
    ("rows", "dtype"), [(FEW_ROWS - 1, torch.bfloat16), (FEW_ROWS, torch.float32), (FEW_ROWS, torch.float64), (0, torch.bfloat16)]
)
def test_few_rows_and_other_types_are_left_to_torch(monkeypatch, rows, dtype):
    monkeypatch.setattr(products._Product, "apply", None)
    given = torch.ones(rows, WIDE, dtype=dtype), torch.ones(NARROW, WIDE, dtype=dtype), torch.ones(NARROW, dtype=dtype)
    assert torch.equal(linear(*given), F.linear(*given))


def test_nothing_in_float32_is_kept_for_the_backward_pass(factors):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
        linear(factors[0], factors[1], None)
    assert set(kept) == {torch.bfloat16}


@pytest.mark.parametrize(("device", "amx", "better"), [("cuda", False, False), ("cpu", True, False), ("cpu", False, True)])
def test_only_processors_without_matrix_units_are_better_in_float32(monkeypatch, device, amx, better):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert better_in_float32(torch.device(device)) == better
