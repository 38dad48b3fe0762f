"""The corpus: errors before any file is read, notices, and the selection of records."""

import json
from dataclasses import replace

import pytest

from cdpo_lightning.config import EvaluationConfig, FilesConfig
from cdpo_lightning.data.corpus import ScoreExample, cost_example, evenly_spaced, load_corpus
from cdpo_lightning.data.records import LabelledAnswer, PreferencePair
from cdpo_lightning.errors import ConfigError

PAIR = {"prompt": "Tea?", "chosen": "Green.", "rejected": "Black."}


@pytest.fixture
def config(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIR), encoding="utf-8")
    return FilesConfig(pairs=str(tmp_path / "pairs.jsonl"), pairs_source="preference")


def test_an_unknown_pair_source_is_refused_before_any_file_is_read():
    with pytest.raises(ConfigError, match=r"dataset\.pairs_source.*pku_saferlhf"):
        load_corpus(FilesConfig(pairs="./missing.jsonl", pairs_source="pku_saferlfh"), EvaluationConfig(), 0)


def test_each_notice_is_given_once(config):
    both = load_corpus(replace(config, reward_pairs=config.pairs), EvaluationConfig(), 0)
    [notice] = both.notices
    assert notice.startswith("preference: ")
    assert both.notices == load_corpus(config, EvaluationConfig(), 0).notices


def test_without_a_file_of_prompts_the_prompts_are_those_of_the_pairs(config):
    corpus = load_corpus(config, EvaluationConfig(), 0)
    assert [item.prompt for item in corpus.prompts] == ["Tea?"]
    assert corpus.metrics["data/pairs"] == 1


def test_the_cost_model_prefers_the_more_harmful_response():
    pair = PreferencePair("p", "a", "b", safer=0, safe_0=True, safe_1=None)
    assert cost_example(pair) == ScoreExample("p", ("a", "b"), 1, (-1, 0))
    assert cost_example(LabelledAnswer("p", "a", False)) == ScoreExample("p", ("a",), None, (1,))


def test_evenly_spaced_items():
    assert evenly_spaced(range(10), 5) == [0, 2, 4, 6, 8]
    assert evenly_spaced(range(3), 0) == evenly_spaced(range(3), 9) == [0, 1, 2]
