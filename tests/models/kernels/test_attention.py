"""Attention by blocks over one joined row: the log-probabilities of dense masks; and sdpa for what comes with another mask."""

import shutil

import pytest
import torch
from torch import nn

from cdpo_lightning.models.heads.score_model import from_causal_lm, pad
from cdpo_lightning.models.kernels import attention
from cdpo_lightning.models.kernels.attention import BLOCKS, FLOAT32, arranged, block_mask, use
from cdpo_lightning.models.lm.causal_lm import build
from cdpo_lightning.models.lm.packed_forward import response_logp
from cdpo_lightning.models.sampling.generation import sample
from cdpo_lightning.text.packing import attention_mask, join_rows, pack

SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
ROWS = pack([((3, 4, 5, 6), [(7, 8, 1), (9, 1), (2, 2, 2, 1)]), ((5,), [(6, 1)]), ((8, 9), [(3,), (4, 5, 6, 1)])])


@pytest.fixture
def model() -> nn.Module:
    return build(SIZES, 24, 0, 1, 3).eval()


@pytest.mark.parametrize("rows", [ROWS, join_rows(ROWS)], ids=["rows", "joined"])
def test_the_blocks_rule_is_that_of_the_dense_mask(rows) -> None:
    """Every pair of positions, by the function that the blocks are made from."""
    made = block_mask(rows)
    length = rows.segment_BT.shape[1]
    b, query, key = torch.meshgrid(torch.arange(len(rows.segment_BT)), torch.arange(length), torch.arange(length), indexing="ij")
    assert torch.equal(made.mask_mod(b, torch.tensor(0), query, key), attention_mask(rows)[:, 0])


def test_only_sdpa_is_replaced(model: nn.Module) -> None:
    model.set_attn_implementation("eager")  # type: ignore[operator]
    use(model, BLOCKS)
    assert model.config._attn_implementation == "eager"  # type: ignore[union-attr]


def test_rows_are_joined_where_attention_can_see_them_apart(model: nn.Module) -> None:
    rows, mask = arranged(model, ROWS)
    assert rows is ROWS
    assert torch.equal(mask, attention_mask(ROWS))
    use(model, FLOAT32)
    one, layout = arranged(model, ROWS)
    location, order = layout[0, :, 0], layout[1, :, 0]
    assert one.input_ids_BT.shape == (1, ROWS.tokens)
    real = location < ROWS.tokens
    assert torch.equal(one.input_ids_BT[0][location[real]], ROWS.input_ids_BT[real])
    assert torch.equal(ROWS.input_ids_BT.flatten()[order.flatten()[: ROWS.tokens]], one.input_ids_BT[0])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch._dynamo looks at much that warns
def test_by_blocks_the_log_probabilities_are_those_of_dense_masks(model: nn.Module) -> None:
    """Without gradient, which flex_attention has on a GPU only."""
    with torch.no_grad():
        expected = response_logp(model, ROWS)
        use(model, BLOCKS)
        assert arranged(model, ROWS)[0].input_ids_BT.shape == (1, ROWS.tokens)
        torch.testing.assert_close(response_logp(model, ROWS), expected, rtol=1e-5, atol=1e-5)


def test_scores_in_bf16_are_those_of_sdpa_but_for_rounding(model: nn.Module) -> None:
    scorer = from_causal_lm(model, 0).bfloat16()
    nn.init.ones_(scorer.head.weight)
    batch = pad([list(range(2, 22)), [6, 7, 8]])
    expected = scorer(*batch)
    use(scorer.backbone, FLOAT32)
    assert scorer.backbone.config._attn_implementation == FLOAT32  # type: ignore[union-attr]
    torch.testing.assert_close(scorer(*batch), expected, rtol=0.05, atol=0.1)


def test_a_model_that_cannot_be_handed_packed_rows_keeps_its_attention(model: nn.Module) -> None:
    model.packs = False  # type: ignore[assignment]
    use(model, FLOAT32)
    assert model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [BLOCKS, FLOAT32])
def test_samples_and_scores_are_those_of_sdpa(model: nn.Module, name: str) -> None:
    def drawn() -> list[tuple[int, ...]]:
        return [s.tokens for s in sample(model, [(3, 4), (5,)], 3, 8, 1, 0, 4)]

    def scores() -> torch.Tensor:
        scorer = from_causal_lm(model, 0)
        nn.init.ones_(scorer.head.weight)
        return scorer(*pad([[3, 4, 5], [6, 7]]))

    samples, expected = drawn(), scores()
    use(model, name)
    assert drawn() == samples
    assert torch.equal(scores(), expected)


def test_a_saved_model_says_nothing_of_it(model: nn.Module, tmp_path) -> None:
    """Whoever loads an exported policy knows transformers' names only."""
    use(model, BLOCKS)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    assert not any(name in (tmp_path / "config.json").read_text() for name in (attention.BLOCKS, attention.FLOAT32))
