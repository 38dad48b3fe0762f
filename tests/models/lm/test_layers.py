"""Layers compiled for the duration of a context: same results, and uncompiled afterwards."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from cdpo_lightning import compat
from cdpo_lightning.errors import ModelError
from cdpo_lightning.models.lm.layers import compiled, layers_of, uncompiled
from cdpo_lightning.models.lm.packed_forward import response_logp
from cdpo_lightning.models.sampling.generation import sample
from cdpo_lightning.text.packing import pack

ROWS = [pack([((3, 4, 5), [(6, 7, 1), (8, 1)])]), pack([((3, 4, 5, 6), [(6, 7, 1), (8, 8, 1)]), ((5, 6), [(6, 1), (9, 9, 1)])])]

CPU = torch.device("cpu")


@pytest.fixture
def model(make_llama) -> nn.Module:
    return make_llama(layers=3)


def test_layers_are_the_elements_of_the_outermost_lists(model: nn.Module) -> None:
    assert list(layers_of(model)) == list(model.model.layers)  # type: ignore[union-attr,arg-type]
    nested = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleList([nn.Linear(1, 1)])]), "head": nn.Linear(1, 1)})
    assert list(layers_of(nested)) == list(nested["blocks"])  # type: ignore[call-overload]


def test_a_missing_compiler_is_reported(model: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with (
        pytest.raises(ModelError, match=r"model.compile=true: expected a C\+\+ compiler, there is no g\+\+"),
        compiled(model, True, CPU),
    ):
        pass


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch._dynamo looks at much that warns
def test_compiled_layers_give_the_same_results_and_sampling_does_not_use_them(model: nn.Module) -> None:
    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        sum(response_logp(model, rows).sum() for rows in ROWS).backward()  # type: ignore[union-attr]
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    def samples() -> list[tuple[int, ...]]:
        return [s.tokens for s in sample(model, [(3, 4), (5,)], 3, 8, (1,), 0, 4)]

    expected, drawn = gradients(), samples()
    with compiled(model, True, CPU):
        graphs = torch._dynamo.utils.counters["stats"]
        graphs.clear()
        for result, right in zip(gradients(), expected, strict=True):
            torch.testing.assert_close(result, right, rtol=1e-4, atol=1e-5)
        assert 1 <= graphs["unique_graphs"] <= 2, "one graph for all layers and lengths, and perhaps one more"
        assert samples() == drawn
        assert graphs["unique_graphs"] <= 2, "none for sampling"
        with uncompiled(model):
            assert all(compat.compiled_call(layer) is None for layer in layers_of(model))
        assert all(compat.compiled_call(layer) is not None for layer in layers_of(model))
    assert all(compat.compiled_call(layer) is None for layer in layers_of(model))
    with compiled(model, False, CPU):
        assert all(compat.compiled_call(layer) is None for layer in layers_of(model))
