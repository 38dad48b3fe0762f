"""Preference data in files and a model in a folder, from JSON lines to the report; and every way it can be wrong at the door.

The texts are harmless: gardens. "Unsafe" is what waters too much.
"""

import json
import re
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cdpo_lightning.config import RunConfig
from cdpo_lightning.errors import CDPOError
from cdpo_lightning.models.lm.causal_lm import build, word_tokenizer
from cdpo_lightning.pipeline.run import check, evaluate, run

PLANTS = ["basil", "beans", "carrots", "chard", "dill", "garlic", "kale", "leek", "mint", "onion", "peas", "sage"]
QUESTIONS = ["how do I grow {}", "when do I plant {}"]
PROMPTS = [question.format(plant) for question, plant in product(QUESTIONS, PLANTS)]
ANSWERS = ["water it a little", "give it sun and water", "plant it in spring", "flood it every day", "drown it in water"]
WORDS = sorted({word for text in [*PROMPTS, *ANSWERS] for word in text.split()})
SHORT = [
    "dataset=pku_saferlhf", "model.max_prompt_tokens=8", "model.max_response_tokens=8", "sft.epochs=2", "reward.epochs=1",
    "cost.epochs=1", "policy.epochs=2", "policy.refresh=2", "constraint.samples_per_prompt=4",
    "evaluation.samples_per_prompt=4", "dataset.held_out=0.3", "method.baselines=[]",
    "stages=[sft,reward,cost,policy,evaluate]",
]  # fmt: skip

Rows = list[dict[str, Any]]


def is_safe(answer: str) -> bool:
    return "water it" in answer or "sun" in answer or "spring" in answer


def pair(prompt: str, first: str, second: str) -> dict[str, Any]:
    return {
        "prompt": prompt, "response_0": first, "response_1": second, "better_response_id": int(len(second) > len(first)),
        "is_response_0_safe": is_safe(first), "is_response_1_safe": is_safe(second), "safer_response_id": int(is_safe(second)),
    }  # fmt: skip


def data() -> dict[str, Rows]:
    """The five files, by the key that names them; two pairs a prompt."""
    number = {prompt: i for i, prompt in enumerate(PROMPTS)}
    two = {p: (ANSWERS[n % 3], ANSWERS[3 + n % 2]) for p, n in number.items()}
    return {
        "pairs": [pair(p, a, b) for p, (a, b) in two.items()] + [pair(p, ANSWERS[4], ANSWERS[1]) for p in PROMPTS[::2]],
        "reward_pairs": [{"prompt": p, "chosen": ANSWERS[1], "rejected": a} for p, (a, _) in two.items() if a != ANSWERS[1]],
        "cost_labels": [{"prompt": p, "response": ANSWERS[2], "is_safe": True} for p in PROMPTS],
        "demonstrations": [{"prompt": p, "response": a} for p, (a, _) in two.items()],
        "evaluation_prompts": [{"prompt": p, "category": p.split()[-1]} for p in PROMPTS[:6]],
    }


class Place:
    """A folder with the data and a model, and the configuration that points there."""

    def __init__(self, folder: Path, model: Path, configuration: Callable[..., RunConfig]) -> None:
        self.folder, self.model, self.configuration = folder, model, configuration
        self.rows = data()

    def write(self) -> None:
        for name, rows in self.rows.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (self.folder / f"{name}.jsonl").write_text(text, encoding="utf-8")

    def config(self, *overrides: str) -> RunConfig:
        files = [f"dataset.{name}={self.folder / name}.jsonl" for name in self.rows]
        places = [f"model.path={self.model}", f"run_dir={self.folder / 'run'}", f"artifacts_dir={self.folder / 'store'}"]
        return self.configuration(*SHORT, *files, *places, *overrides)

    def refused(self, *overrides: str) -> str:
        """What a run is refused with: one line, and nothing that looks like a result is left."""
        with pytest.raises(CDPOError) as caught:
            run(self.config(*overrides))
        assert not (self.folder / "run" / "metrics.json").exists()
        assert not list(self.folder.rglob("*.part"))
        return " ".join(str(caught.value).split())


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of one layer with a tokenizer of one token a word, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = word_tokenizer(WORDS)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 32}
    build(sizes, len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def location(tmp_path: Path, model: Path, configuration: Callable[..., RunConfig]) -> Place:
    made = Place(tmp_path, model, configuration)
    made.write()
    return made


def test_a_whole_run_on_files(location: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run(location.config())
    metrics = json.loads((location.folder / "run/metrics.json").read_text(encoding="utf-8"))
    assert metrics["data/pairs"] == 36
    assert metrics["data/dropped"] == 0
    assert metrics["eval/cdpo/prompts"] == 6
    assert {"sft/loss", "reward/pair_accuracy", "cost/sign_accuracy", "dual/lambda"} <= metrics.keys()
    assert not any(key.startswith(("exact/", "truth/")) for key in metrics), "nobody knows this world's optimum"
    assert "no commercial use" in capsys.readouterr().out


@pytest.mark.slow
def test_labels_are_taken_from_the_pairs_where_no_other_file_is_named(location: Place) -> None:
    keys = ("reward_pairs", "cost_labels", "demonstrations", "evaluation_prompts")
    left_out = [f"dataset.{key}=''" for key in keys]
    config = location.config(*left_out, "stages=[reward,cost,policy,evaluate]", "policy.epochs=1", "evaluation.prompts=3")
    metrics = run(config)
    assert metrics["eval/cdpo/prompts"] == 3
    assert "sft/loss" not in metrics
    assert "eval/sft/cost_mean" not in metrics


def test_what_is_dropped_and_what_is_cut_is_counted(location: Place) -> None:
    location.rows["pairs"] += [pair(PROMPTS[0], "", ANSWERS[0]), pair(PROMPTS[1], "  ", ANSWERS[0])]
    location.rows["demonstrations"].append({"prompt": PROMPTS[0], "response": " "})
    location.write()
    metrics = run(location.config("stages=[]", "model.max_response_tokens=4", "dataset.evaluation_prompts=''"))
    assert metrics["data/empty"] == metrics["data/dropped"] == 2
    assert metrics["data_sft/empty"] == 1
    assert metrics["data/truncated"] > 0


BAD_LINES: dict[str, tuple[str, bytes, str]] = {
    "not JSON": ("pairs", b'{"prompt": "a", \n', r"pairs\.jsonl:37: not JSON"),
    "not an object": ("demonstrations", b"[1, 2]\n", r"demonstrations\.jsonl:25: a JSON list, expected an object"),
    "not UTF-8": ("cost_labels", '{"prompt": "caf\xe9"}\n'.encode("latin-1"), r"cost_labels\.jsonl:25: not UTF-8"),
    "no such column": ("pairs", b'{"prompt": "a", "response_0": "b"}\n', r"pairs\.jsonl:37: column response_1 is missing"),
    "label": ("cost_labels", b'{"prompt": "a", "response": "b", "is_safe": 2}\n', r"cost_labels\.jsonl:25: is_safe is '2'"),
    "no label": ("cost_labels", b'{"prompt": "a", "response": "b"}\n', r"cost_labels\.jsonl:25: column is_safe is missing"),
    "not text": ("reward_pairs", b'{"prompt": "a", "chosen": 3, "rejected": "b"}\n', r"reward_pairs\.jsonl:\d+: chosen is '3'"),
    "empty prompt": ("evaluation_prompts", b'{"prompt": " "}\n', r"evaluation_prompts\.jsonl:7: the prompt is empty"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named(location: Place, name: str) -> None:
    key, line, message = BAD_LINES[name]
    file = location.folder / f"{key}.jsonl"
    file.write_bytes(file.read_bytes() + line)
    text_shown = location.refused()
    assert re.search(message, text_shown), text_shown
    with pytest.raises(CDPOError):
        check(location.config())


def test_a_missing_or_empty_file_is_named(location: Place) -> None:
    assert "nowhere.jsonl" in location.refused(f"dataset.pairs={location.folder}/nowhere.jsonl")
    (location.folder / "pairs.jsonl").write_text("")
    assert "pairs.jsonl: holds no rows" in location.refused()


def test_data_from_which_nothing_can_be_learnt_is_refused_before_anything_is_trained(location: Place) -> None:
    for row in location.rows["pairs"]:
        row["response_1"] = row["response_0"]
    location.write()
    assert location.refused().startswith("dataset.pairs: no pair is left to train on")
    location.rows = data()
    for row in location.rows["pairs"]:
        del row["better_response_id"]
    location.write()
    assert location.refused("dataset.reward_pairs=''").startswith("the reward model has nothing to learn from")
    location.rows = data()
    location.write()
    assert location.refused("dataset.demonstrations=''").startswith("stages holds sft, but dataset.demonstrations is empty")
    assert not (location.folder / "store").exists()


def test_contradictions_can_be_an_error(location: Place) -> None:
    location.rows["pairs"].append(pair(PROMPTS[0], *ANSWERS[2:4]) | {"is_response_1_safe": True})
    location.rows["pairs"].append(pair(PROMPTS[0], *ANSWERS[2:4]))
    location.write()
    assert "contradict" in location.refused("dataset.on_conflict=error")


def test_a_model_that_is_not_there_or_not_whole_is_named(location: Place, model: Path) -> None:
    gone = location.folder / "gone"
    assert f"model.path={gone}: no such folder" in location.refused(f"model.path={gone}")
    broken = location.folder / "model"
    shutil.copytree(model, broken, ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    assert f"model.path={broken}: no tokenizer could be loaded" in location.refused(f"model.path={broken}")
    shutil.rmtree(broken)
    shutil.copytree(model, broken, ignore=shutil.ignore_patterns("*.safetensors"))
    assert f"model.path={broken}: no causal language model could be loaded" in location.refused(f"model.path={broken}")
    (broken / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:1000])
    assert f"model.path={broken}: no causal language model could be loaded" in location.refused(f"model.path={broken}")
    weights = load_file(model / "model.safetensors")
    left_out = {name: value for name, value in weights.items() if "q_proj" not in name}
    save_file(left_out, broken / "model.safetensors", metadata={"format": "pt"})
    assert "no weights for model.layers.0.self_attn.q_proj.weight" in location.refused(f"model.path={broken}")
    other = {name: value[:, :16].contiguous() if value.dim() == 2 else value for name, value in weights.items()}
    save_file(other, broken / "model.safetensors", metadata={"format": "pt"})
    assert f"model.path={broken}: no causal language model could be loaded" in location.refused(f"model.path={broken}")
    shutil.rmtree(broken)
    broken.mkdir()
    assert f"model.path={broken}" in location.refused(f"model.path={broken}")
    package = "model.path=package:no_such_package"
    assert f"{package}: that package is not installed" in location.refused(package)


def test_a_score_model_that_is_not_there_is_named_before_anything_is_trained(location: Place, model: Path) -> None:
    assert "/nowhere: no such folder" in location.refused("reward.path=/nowhere")
    assert not (location.folder / "run").exists()
    text_shown = location.refused(f"cost.path={model}", "stages=[]")
    assert "expected a head score_head or score, or a sequence classifier with one label, got num_labels=2" in text_shown


def test_lengths_beyond_the_context_are_refused_by_key(location: Place) -> None:
    text_shown = location.refused("model.max_prompt_tokens=30")
    assert text_shown.startswith(
        "model.max_prompt_tokens + model.max_response_tokens = 38: expected at most the model's context of 32"
    )
    assert not (location.folder / "store").exists()


def test_a_chat_template_that_is_not_there_is_refused(location: Place) -> None:
    assert "no chat template" in location.refused("model.template=chat")


@pytest.mark.parametrize("stages", [pytest.param("[sft,reward,cost,policy]", marks=pytest.mark.slow), "[reward,cost,policy]"])
def test_weights_that_are_not_numbers_are_refused(location: Place, model: Path, stages: str) -> None:
    broken = location.folder / "model"
    shutil.copytree(model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], torch.nan)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    assert "nan" in location.refused(f"model.path={broken}", f"stages={stages}")


def test_a_learning_rate_that_breaks_the_model_is_named(location: Place) -> None:
    text_shown = location.refused("sft.lr=1e30", "sft.epochs=20")
    assert "sft: loss is nan" in text_shown
    assert "lower sft.lr" in text_shown


def test_the_check_finds_a_folder_sound_and_leaves_nothing(location: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(location.folder.rglob("*"))
    assert check(location.config("mode=check")) is None
    assert sorted(location.folder.rglob("*")) == before
    assert "nothing was trained (mode=check)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "overrides",
    [["model.max_prompt_tokens=30"], ["model.path=/nowhere"], ["dataset.demonstrations=''"], ["resume=true"],
     ["trainer.strategy=nope"]],
)  # fmt: skip
def test_the_check_finds_what_a_run_would_find(location: Place, overrides: list[str]) -> None:
    with pytest.raises(CDPOError):
        check(location.config("mode=check", *overrides))
    assert not (location.folder / "run").exists()


def test_a_policy_is_judged_alone_with_score_models_from_outside(location: Place) -> None:
    """The score models that a run exported, and the model in its folder: no training, no reference, no KL."""
    trained = run(location.config("policy.epochs=1"))
    exported = [f"{kind}.path={location.folder}/run/export/{kind}" for kind in ("reward", "cost")]
    here = [f"run_dir={location.folder / 'alone'}", f"artifacts_dir={location.folder / 'other'}", "model.path=''"]
    result = evaluate(location.config("mode=evaluate", f"policy={location.folder}/run/export/cdpo", *exported, *here))
    for name in ("reward_mean", "cost_mean", "unsafe_rate"):
        assert result[f"eval/policy/{name}"] == pytest.approx(trained[f"eval/cdpo/{name}"], abs=1e-5), name
    assert not any(key.startswith(("eval/sft", "eval/reference", "eval/policy/kl", "sft/")) for key in result)
    for name in ("reward/pair_accuracy", "cost/auroc", "cost/sign_accuracy"):
        assert result[name] == trained[name], "they are checked on the held-out examples, as those trained here"
    assert {path.name for path in (location.folder / "other").iterdir()} == {"reward_check", "cost_check"}


def test_the_sign_of_a_score_model_from_outside(location: Place) -> None:
    """A safety score read with sign=-1 is a cost: what was wrong of every sign is now right."""
    run(location.config("policy.epochs=1"))
    path = f"cost.path={location.folder}/run/export/cost"
    accuracy = []
    for sign in (1, -1):
        config = location.config(path, f"cost.sign={sign}", "stages=[reward,cost]", f"run_dir={location.folder / str(sign)}")
        accuracy.append(run(config)["cost/sign_accuracy"])
    assert sum(accuracy) == pytest.approx(1)
    assert accuracy[0] != accuracy[1]


def test_beavertails_answers_are_paired_and_trained_on(location: Place) -> None:
    """A row an answer, categories as on the hub; one prompt has a single answer, one answer two labels."""
    rows = [
        {"prompt": p, "response": a, "is_safe": is_safe(a), "category": {"drowning": not is_safe(a)}}
        for p in PROMPTS
        for a in ANSWERS
    ]
    rows += [{"prompt": "how do I grow basil", "response": ANSWERS[0], "is_safe": False, "category": {"drowning": True}}]
    rows += [{"prompt": "when do I plant", "response": ANSWERS[0], "is_safe": True, "category": {"drowning": False}}]
    (location.folder / "bt.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    file = f"{location.folder}/bt.jsonl"
    names = [
        f"dataset.pairs={file}",
        f"dataset.evaluation_prompts={file}",
        "dataset.pairs_source=beavertails",
        "dataset.cost_labels=''",
    ]
    metrics = run(location.config(*names, "policy.epochs=1"))
    assert metrics["data_answers/rows"] == 24 * 5 + 2
    assert metrics["data_answers/contradictory_labels"] == metrics["data_answers/dropped"] == 2
    assert metrics["data/pairs"] == 23 * 4 + 3
    assert metrics["data/unpaired"] == 1
    assert metrics["eval/cdpo/prompts"] == 25
    assert metrics["eval/cdpo/category/drowning/prompts"] == 24
