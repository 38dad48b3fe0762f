"""Batches and lists are split among any number of ranks without loss; the ranks' weighted means give the mean of the batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdpo_lightning import ranks
from cdpo_lightning.errors import ConfigError, NumericsError
from cdpo_lightning.maths.score_losses import cost_model_loss
from cdpo_lightning.text.packing import pack


def as_rank(patch: pytest.MonkeyPatch, number: int, count: int) -> None:
    patch.setattr(ranks, "rank", lambda: number)
    patch.setattr(ranks, "world_size", lambda: count)


@given(st.lists(st.integers(), max_size=9), st.integers(1, 5))
def test_each_item_is_in_exactly_one_share(items: list[int], count: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        shares = []
        for number in range(count):
            as_rank(patch, number, count)
            shares.append(ranks.own_share(items))
    assert sorted(item for share in shares for item in share) == sorted(items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.lists(st.integers(1, 6), min_size=1, max_size=9), st.integers(1, 5))
def test_the_average_of_the_weighted_means_is_the_mean_of_the_batch(sizes: list[int], count: int) -> None:
    """An item of size n with index i contributes n terms of value i to the mean."""
    batch = list(enumerate(sizes))
    means = []
    with pytest.MonkeyPatch.context() as patch:
        for number in range(count):
            as_rank(patch, number, count)
            own, weight = ranks.batch_share(batch, lambda item: item[1])
            assert own, "every rank runs something, or the all-reduce of the gradients would hang"
            means.append(weight * sum(i * n for i, n in own) / sum(n for _, n in own))
    expected = sum(i * n for i, n in batch) / sum(sizes)
    assert sum(means) / count == pytest.approx(expected)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_loss_of_a_cost_batch_is_the_average_over_the_ranks(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Pairs and signs are averaged over different numbers; four examples, of which one has no pair and one no sign."""
    from cdpo_lightning.data.corpus import ScoreExample
    from cdpo_lightning.pipeline.scorers import _collate

    examples = [
        ScoreExample("p", ("a", "b"), 0, (1, -1)),
        ScoreExample("p", ("c",), None, (-1,)),
        ScoreExample("p", ("d", "e"), 1, (0, 0)),
        ScoreExample("p", ("f", "g"), 1, (1, 1)),
    ]
    value = dict(zip("abcdefg", (0.3, -1.0, 2.0, 0.1, -0.4, 1.5, 0.7), strict=True))
    rows = [(e, [[ord(text)] for text in e.responses]) for e in examples]

    def loss(batch) -> float:
        score = torch.tensor([value[chr(i)] for i in batch.input_ids[:, 0].tolist()], dtype=torch.float64)
        return float(cost_model_loss(score, batch.pairs, batch.sign, batch.pair_weight, batch.sign_weight))

    whole = loss(_collate(rows))
    parts = []
    for number in range(count):
        as_rank(monkeypatch, number, count)
        parts.append(loss(_collate(rows)))
    assert sum(parts) / count == pytest.approx(whole, rel=1e-12)


def test_in_one_process_the_functions_return_their_arguments() -> None:
    assert ranks.map_over_ranks([3, 1, 2], lambda own: [10 * i for i in own]) == [30, 10, 20]
    assert ranks.batch_share([1, 2], lambda _: 1) == ([1, 2], 1.0)
    assert ranks.broadcast("x") == "x"
    assert ranks.any_rank(True)
    assert pack([((1,), [(2,)])]).responses == 1


def test_values_that_differ_between_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "all_gather", lambda value: [value, value + 1e-9])
    with pytest.raises(NumericsError, match=r"lambda differs between ranks \(rank 0: 0\.5, rank 1: 0\.500"):
        ranks.require_equal("lambda", 0.5)


def test_a_wrong_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with (
        pytest.raises(ConfigError, match=r"trainer\.devices \* trainer\.num_nodes = 8, but WORLD_SIZE=4"),
        ranks.process_group(8, False),
    ):
        pass
