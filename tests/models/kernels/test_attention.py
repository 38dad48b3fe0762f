"""Attention over one joined row: same log-probabilities as with dense masks; other inputs are left to sdpa."""

import shutil

import pytest
import torch
from torch import nn

from cdpo_lightning.models.heads.score_model import from_causal_lm, pad
from cdpo_lightning.models.kernels.attention import BLOCK_ATTENTION, FLOAT32_ATTENTION, attention_inputs, block_mask, use_attention
from cdpo_lightning.models.lm.packed_forward import response_logp
from cdpo_lightning.models.sampling.generation import sample
from cdpo_lightning.text.packing import attention_mask, join_rows, pack

ROWS = pack([((3, 4, 5, 6), [(7, 8, 1), (9, 1), (2, 2, 2, 1)]), ((5,), [(6, 1)]), ((8, 9), [(3,), (4, 5, 6, 1)])])


@pytest.fixture
def model(make_llama) -> nn.Module:
    return make_llama(heads=4, vocabulary=24)


@pytest.mark.parametrize("rows", [ROWS, join_rows(ROWS)], ids=["rows", "joined"])
def test_the_block_mask_allows_what_the_dense_mask_allows(rows) -> None:
    """For every pair of positions, by the function that the blocks are made from."""
    made = block_mask(rows)
    length = rows.segment_BT.shape[1]
    b, query, key = torch.meshgrid(torch.arange(len(rows.segment_BT)), torch.arange(length), torch.arange(length), indexing="ij")
    assert torch.equal(made.mask_mod(b, torch.tensor(0), query, key), attention_mask(rows)[:, 0])


def test_only_sdpa_is_replaced(model: nn.Module) -> None:
    model.set_attn_implementation("eager")  # type: ignore[operator]
    use_attention(model, BLOCK_ATTENTION)
    assert model.config._attn_implementation == "eager"  # type: ignore[union-attr]


def test_rows_are_joined_only_for_attention_that_supports_it(model: nn.Module) -> None:
    rows, mask = attention_inputs(model, ROWS)
    assert rows is ROWS
    assert torch.equal(mask, attention_mask(ROWS))
    use_attention(model, FLOAT32_ATTENTION)
    one, layout = attention_inputs(model, ROWS)
    location, order = layout[0, :, 0], layout[1, :, 0]
    assert one.input_ids_BT.shape == (1, ROWS.tokens)
    real = location < ROWS.tokens
    assert torch.equal(one.input_ids_BT[0][location[real]], ROWS.input_ids_BT[real])
    assert torch.equal(ROWS.input_ids_BT.flatten()[order.flatten()[: ROWS.tokens]], one.input_ids_BT[0])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch._dynamo looks at much that warns
def test_block_attention_gives_the_log_probabilities_of_dense_masks(model: nn.Module) -> None:
    """Without gradient: flex_attention has one on a GPU only."""
    with torch.no_grad():
        expected = response_logp(model, ROWS)
        use_attention(model, BLOCK_ATTENTION)
        assert attention_inputs(model, ROWS)[0].input_ids_BT.shape == (1, ROWS.tokens)
        torch.testing.assert_close(response_logp(model, ROWS), expected, rtol=1e-5, atol=1e-5)


def test_scores_in_bf16_are_those_of_sdpa_up_to_rounding(model: nn.Module) -> None:
    scorer = from_causal_lm(model, 0).bfloat16()
    nn.init.ones_(scorer.head.weight)
    batch = pad([list(range(2, 22)), [6, 7, 8]])
    expected = scorer(*batch)
    use_attention(scorer.backbone, FLOAT32_ATTENTION)
    assert scorer.backbone.config._attn_implementation == FLOAT32_ATTENTION  # type: ignore[union-attr]
    torch.testing.assert_close(scorer(*batch), expected, rtol=0.05, atol=0.1)


def test_a_model_without_packing_support_keeps_its_attention(model: nn.Module) -> None:
    model.packing_supported = False  # type: ignore[assignment]
    use_attention(model, FLOAT32_ATTENTION)
    assert model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [BLOCK_ATTENTION, FLOAT32_ATTENTION])
def test_samples_and_scores_are_those_of_sdpa(model: nn.Module, name: str) -> None:
    def drawn() -> list[tuple[int, ...]]:
        return [s.tokens for s in sample(model, [(3, 4), (5,)], 3, 8, (1,), 0, 4)]

    def scores() -> torch.Tensor:
        scorer = from_causal_lm(model, 0)
        nn.init.ones_(scorer.head.weight)
        return scorer(*pad([[3, 4, 5], [6, 7]]))

    samples, expected = drawn(), scores()
    use_attention(model, name)
    assert drawn() == samples
    assert torch.equal(scores(), expected)


def test_a_saved_model_does_not_name_our_attention(model: nn.Module, tmp_path) -> None:
    """An exported policy is loaded where only transformers' own names are registered."""
    use_attention(model, BLOCK_ATTENTION)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    assert not any(name in (tmp_path / "config.json").read_text() for name in (BLOCK_ATTENTION, FLOAT32_ATTENTION))
