"""The raw PKU-SafeRLHF file with its repeats and contradictions: audit and training under every `dataset.on_conflict`."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from cdpo_lightning.config import RunConfig
from cdpo_lightning.errors import DataError
from cdpo_lightning.models.lm.causal_lm import build, word_tokenizer
from cdpo_lightning.pipeline.run import run

SHORT = [
    "dataset=pku_saferlhf", "dataset.cost_labels=''", "dataset.demonstrations=''", "dataset.evaluation_prompts=''",
    "dataset.max_pairs=24", "dataset.max_reward_pairs=16", "dataset.max_cost_examples=32", "dataset.max_held_out=8",
    "model.max_prompt_tokens=24", "model.max_response_tokens=24", "reward.epochs=1", "cost.epochs=1", "policy.epochs=1",
    "policy.refresh=2", "constraint.prompts=4", "constraint.samples_per_prompt=4", "evaluation.prompts=4",
    "evaluation.samples_per_prompt=2", "method.baselines=[]", "stages=[reward,cost,policy,evaluate]",
]  # fmt: skip
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 64}


@pytest.fixture(scope="module")
def raw(data_folder: Path) -> Path:
    return data_folder / "pku_saferlhf_raw.jsonl"


@pytest.fixture(scope="module")
def model(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose tokens are the most frequent words of the file."""
    folder = tmp_path_factory.mktemp("model")
    words = Counter(raw.read_text(encoding="utf-8").split())
    tokenizer = word_tokenizer([word for word, _ in words.most_common(400) if word not in ("<pad>", "<eos>", "<unk>")])
    build(SIZES, len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def counted(rows: list[dict], policy: str) -> dict[str, int]:
    """Return the number of pairs left and of rows with a contradiction, counted without the package."""
    rows = [r for r in rows if r["prompt"].strip() and r["response_0"].strip() and r["response_1"].strip()]
    rows = [r for r in rows if r["response_0"] != r["response_1"]]
    marks, safer = defaultdict(Counter), defaultdict(Counter)
    for r in rows:
        for i in (0, 1):
            marks[r["prompt"], r[f"response_{i}"]][bool(r[f"is_response_{i}_safe"])] += 1
        safer[r["prompt"], frozenset((r["response_0"], r["response_1"]))][r[f"response_{r['safer_response_id']}"]] += 1
    kept, wrong = set(), 0
    for r in rows:
        prompt, texts = r["prompt"], [r["response_0"], r["response_1"]]
        own = [bool(r["is_response_0_safe"]), bool(r["is_response_1_safe"])]
        named = r["safer_response_id"]
        preference = safer[prompt, frozenset(texts)]
        fault = any(len(marks[prompt, text]) > 1 for text in texts) or len(preference) > 1 or (not own[named] and own[1 - named])
        wrong += fault
        best = texts[named]
        if policy == "flip":
            own = [most(marks[prompt, text]) for text in texts]
            best = texts[own.index(True)] if set(own) == {True, False} else most(preference)
        if (policy == "drop" and fault) or None in (*own, best):
            continue
        kept.add((prompt, frozenset(zip(texts, own, strict=True)), best))
    return {"data/pairs": len(kept), "data/contradictions": wrong}


def most(votes: Counter) -> object:
    ranked = sorted(votes.values(), reverse=True)
    return None if len(ranked) > 1 and ranked[0] == ranked[1] else max(votes, key=votes.get)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["drop", "flip", "keep"])
def test_the_raw_file_is_audited_and_trained_on(
    raw: Path, model: Path, data_folder: Path, tmp_path: Path, configuration: Callable[..., RunConfig], policy: str
) -> None:
    files = [f"dataset.pairs={raw}", f"dataset.reward_pairs={data_folder}/helpful_pairs.jsonl", f"dataset.on_conflict={policy}"]
    folders = [f"model.path={model}", f"run_dir={tmp_path}/run", f"artifacts_dir={tmp_path}/store"]
    metrics = run(configuration(*SHORT, *files, *folders))
    rows = [json.loads(line) for line in raw.read_text(encoding="utf-8").splitlines()]
    expected = counted(rows, policy)
    assert expected["data/contradictions"] > 100, "the raw file has contradictions"
    assert {key: metrics[key] for key in expected} == expected
    assert metrics["data/rows"] == len(rows) == metrics["data/pairs"] + metrics["data/dropped"]
    assert {"eval/cdpo/cost_mean", "dual/lambda", "cost/held_out"} <= metrics.keys()


def test_the_raw_file_is_refused_where_contradictions_are_an_error(
    raw: Path, model: Path, tmp_path: Path, configuration: Callable[..., RunConfig]
) -> None:
    folders = [f"model.path={model}", f"run_dir={tmp_path}/run", f"artifacts_dir={tmp_path}/store"]
    with pytest.raises(DataError, match=r"pku_saferlhf_raw\.jsonl:\d+: .*contradict"):
        run(configuration(*SHORT, f"dataset.pairs={raw}", "dataset.on_conflict=error", *folders))
    assert not (tmp_path / "run").exists()
