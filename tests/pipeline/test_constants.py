"""The constants of a response are those of the text that the policy learns to write: cut where its tokens are."""

from types import SimpleNamespace

import torch

from cdpo_lightning.data.records import PreferencePair
from cdpo_lightning.models.lm.causal_lm import word_tokenizer
from cdpo_lightning.pipeline.constants import make_table
from cdpo_lightning.text.templates import Encoder


def test_a_response_that_is_cut_is_scored_as_cut():
    encoder = Encoder(word_tokenizer(["a", "b", "c", "d"]), "plain", 4, 3)
    pair = PreferencePair(prompt="a", response_0="b c", response_1="d c b a")
    bench = SimpleNamespace(corpus=SimpleNamespace(pairs=[pair]), encoder=encoder, config=SimpleNamespace(seed=0))
    requested = []

    def constants(texts, rows):
        requested.extend(texts)
        return (torch.zeros(len(texts)),) * 3

    table, _, _, cut = make_table(bench, constants)
    assert requested == [("a", "b c"), ("a", "d c b")]
    assert [encoder.decode(tokens) for tokens in table.responses] == ["b c", "d c b"]
    assert cut["data/truncated"] == 1
