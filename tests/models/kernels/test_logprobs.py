"""Token log-probabilities, for any chunks of the vocabulary, compared with a plain log-softmax in float64."""

import pytest
import torch

from cdpo_lightning.models.kernels import logprobs

TOKENS, HIDDEN, VOCABULARY = 13, 5, 7


@pytest.fixture
def problem():
    """Hidden states, head, bias and targets, float64, the first three with a gradient."""
    hidden, weight = torch.randn(TOKENS, HIDDEN).double(), torch.randn(VOCABULARY, HIDDEN).double()
    bias = torch.randn(VOCABULARY).double()
    target = torch.randint(VOCABULARY, (TOKENS,))
    return hidden.requires_grad_(), weight.requires_grad_(), target, bias.requires_grad_()


def plain(hidden, weight, target, bias):
    logits = hidden @ weight.T + (0 if bias is None else bias)
    return logits.log_softmax(-1)[torch.arange(TOKENS), target]


def value_and_gradients(function, problem):
    leaves = [t for t in problem if t.requires_grad]
    value = function(*problem)
    upstream = torch.linspace(-1, 2, TOKENS, dtype=value.dtype)
    return [value, *torch.autograd.grad(value, leaves, upstream)]


@pytest.mark.parametrize("elements", [2**25, 1, VOCABULARY, 3 * TOKENS, 5 * TOKENS + 1, TOKENS * VOCABULARY])
def test_value_and_gradient_for_any_chunk_size(problem, monkeypatch, elements):
    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", elements)
    for got, want in zip(value_and_gradients(logprobs.token_logp, problem), value_and_gradients(plain, problem), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_a_chunk_holds_at_most_the_allowed_number_of_logits(problem, monkeypatch):
    sizes = []
    whole = logprobs._logits
    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", 3 * TOKENS + 1)
    monkeypatch.setattr(logprobs, "_logits", lambda h, w, b: sizes.append(len(h) * len(w)) or whole(h, w, b))
    logp = logprobs.token_logp(*problem)
    assert sizes == [3 * TOKENS, 3 * TOKENS, TOKENS]
    logp.sum().backward()
    assert sizes == [3 * TOKENS, 3 * TOKENS, TOKENS] * 2, "computed again, chunk by chunk"


def test_a_head_of_another_type_is_converted_chunk_by_chunk(problem, monkeypatch):
    converted = []
    whole = logprobs._head_chunk
    monkeypatch.setattr(logprobs, "WEIGHTS_PER_CHUNK", 2 * HIDDEN + 1)
    monkeypatch.setattr(logprobs, "faster_in_float32", lambda _: True)
    monkeypatch.setattr(logprobs, "_head_chunk", lambda *given: converted.append(whole(*given)) or converted[-1])
    hidden, weight, target, bias = (t.detach().bfloat16() if t.is_floating_point() else t for t in problem)
    logp = logprobs.token_logp(hidden.requires_grad_(), weight, target, bias)
    assert [(w.dtype, len(w), len(b)) for w, b in converted] == [(torch.float32, n, n) for n in (2, 2, 2, 1)]
    exact = plain(hidden.double(), weight.double(), target, bias.double())
    torch.testing.assert_close(logp.double(), exact, rtol=0, atol=1e-5)


def test_kept_logits_are_computed_once_and_two_backward_passes_can_use_them(problem, monkeypatch):
    calls = []
    whole = logprobs._logits
    monkeypatch.setattr(logprobs, "_logits", lambda *given: calls.append(1) or whole(*given))
    logp = logprobs.token_logp(*problem)
    first, second = (torch.autograd.grad(logp.sum(), problem[0], retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert len(calls) == 1


@pytest.mark.parametrize("elements", [2**25, 4 * VOCABULARY])
def test_a_frozen_weight_gets_no_gradient(problem, monkeypatch, elements):
    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", elements)
    hidden, weight, target, bias = problem
    weight.requires_grad_(False)
    logprobs.token_logp(hidden, weight, target, bias).sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None
    assert bias.grad is not None


def test_without_a_bias(problem):
    hidden, weight, target, _ = problem
    torch.testing.assert_close(logprobs.token_logp(hidden, weight, target), plain(hidden, weight, target, None))


def test_log_probabilities_by_hand():
    """Logits 0, ln 2, ln 5 give probabilities 1/8, 2/8, 5/8."""
    weight = torch.tensor([[0.0], [2.0], [5.0]]).clamp(min=1).log()
    logp = logprobs.token_logp(torch.ones(3, 1), weight, torch.tensor([0, 1, 2]))
    assert logp.exp().tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8])


@pytest.mark.parametrize(("dtype", "in_float32"), [(torch.bfloat16, True), (torch.bfloat16, False), (torch.float16, False)])
def test_half_precision_states_give_float32_log_probabilities(monkeypatch, dtype, in_float32):
    """Log-softmax in bfloat16 would round every log-probability to 3 digits. In float32 the logits are not rounded either."""
    monkeypatch.setattr(logprobs, "faster_in_float32", lambda _: in_float32)
    hidden, weight = torch.randn(TOKENS, HIDDEN).to(dtype), torch.randn(VOCABULARY, HIDDEN).to(dtype)
    target = torch.randint(VOCABULARY, (TOKENS,))
    logp = logprobs.token_logp(hidden, weight, target)
    assert logp.dtype == torch.float32
    logits = hidden.double() @ weight.double().T if in_float32 else (hidden @ weight.T).double()
    torch.testing.assert_close(logp.double(), logits.log_softmax(-1)[torch.arange(TOKENS), target], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("in_float32", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_gradients_of_bf16_are_those_of_float64_up_to_rounding(monkeypatch, problem, in_float32, autocast):
    monkeypatch.setattr(logprobs, "faster_in_float32", lambda _: in_float32)
    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", 4 * VOCABULARY)
    hidden, weight, target, bias = (t.detach().bfloat16() if t.is_floating_point() else t for t in problem)
    exact = value_and_gradients(
        plain, [t.double().requires_grad_() if t.is_floating_point() else t for t in (hidden, weight, target, bias)]
    )
    if autocast:
        hidden, weight, bias = hidden.float(), weight.float(), bias.float()
    half = [t.requires_grad_() if t.is_floating_point() else t for t in (hidden, weight, target, bias)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = logprobs.token_logp(*half)
    result = [value, *torch.autograd.grad(value, [hidden, weight, bias], torch.linspace(-1, 2, TOKENS))]
    assert [t.dtype for t in result[1:]] == [hidden.dtype] * 3
    for got, want in zip(result, exact, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=0.02, atol=0.05)


def test_sum_per_response_by_hand():
    """Sums, never means; tokens in any order; a response without tokens has probability 1."""
    logp = torch.tensor([-1.0, -2.0, -4.0, -8.0])
    assert logprobs.sum_per_response(logp, torch.tensor([0, 2, 0, 2]), 3).tolist() == [-5.0, 0.0, -10.0]
