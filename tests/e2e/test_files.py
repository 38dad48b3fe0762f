"""Preference data in files and a model in a folder, from JSON lines to the report; and the errors that stop a run before training.

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
from cdpo_lightning.errors import CDPOError, ModelError
from cdpo_lightning.models.lm.causal_lm import build, word_tokenizer
from cdpo_lightning.pipeline.run import check, evaluate, run
from tests.text.chat_tokenizers import published_tokenizer

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
    """Return the rows of the five files by their configuration key; two pairs a prompt."""
    number = {prompt: i for i, prompt in enumerate(PROMPTS)}
    two = {p: (ANSWERS[n % 3], ANSWERS[3 + n % 2]) for p, n in number.items()}
    return {
        "pairs": [pair(p, a, b) for p, (a, b) in two.items()] + [pair(p, ANSWERS[4], ANSWERS[1]) for p in PROMPTS[::2]],
        "reward_pairs": [{"prompt": p, "chosen": ANSWERS[1], "rejected": a} for p, (a, _) in two.items() if a != ANSWERS[1]],
        "cost_labels": [{"prompt": p, "response": ANSWERS[2], "is_safe": True} for p in PROMPTS],
        "demonstrations": [{"prompt": p, "response": a} for p, (a, _) in two.items()],
        "evaluation_prompts": [{"prompt": p, "category": p.split()[-1]} for p in PROMPTS[:6]],
    }


class Project:
    """A folder with data files and a model, and the configuration that names them."""

    def __init__(self, folder: Path, model: Path, configuration: Callable[..., RunConfig]) -> None:
        self.folder, self.model, self.configuration = folder, model, configuration
        self.rows = data()

    def write(self) -> None:
        for name, rows in self.rows.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (self.folder / f"{name}.jsonl").write_text(text, encoding="utf-8")

    def config(self, *overrides: str) -> RunConfig:
        files = [f"dataset.{name}={self.folder / name}.jsonl" for name in self.rows]
        folders = [f"model.path={self.model}", f"run_dir={self.folder / 'run'}", f"artifacts_dir={self.folder / 'store'}"]
        return self.configuration(*SHORT, *files, *folders, *overrides)

    def refused(self, *overrides: str) -> str:
        """Return the error that stops a run, which must leave no metrics and no temporary file."""
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
def project(tmp_path: Path, model: Path, configuration: Callable[..., RunConfig]) -> Project:
    made = Project(tmp_path, model, configuration)
    made.write()
    return made


def test_a_whole_run_on_files(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    run(project.config())
    metrics = json.loads((project.folder / "run/metrics.json").read_text(encoding="utf-8"))
    assert metrics["data/pairs"] == 36
    assert metrics["data/dropped"] == 0
    assert metrics["eval/cdpo/prompts"] == 6
    assert {"sft/loss", "reward/pair_accuracy", "cost/sign_accuracy", "dual/lambda"} <= metrics.keys()
    assert not any(key.startswith(("exact/", "truth/")) for key in metrics), "the optimum of real data is unknown"
    assert "no commercial use" in capsys.readouterr().out


def test_a_whole_run_in_gemmas_chat_template(project: Project) -> None:
    """The model's eos is not the end of its turns; the exported policy and scorers go on from there."""
    tokenizer, folder = published_tokenizer("gemma"), project.folder / "gemma"
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 4, "max_position_embeddings": 128}
    build(sizes, len(tokenizer), 0, tokenizer.eos_token_id, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    lengths = ["model.max_prompt_tokens=64", "model.max_response_tokens=48"]
    run(project.config(f"model.path={folder}", "model.template=chat", *lengths, "sft.epochs=15", "sft.lr=1e-2", "sft.batch_size=4"))
    metrics = json.loads((project.folder / "run/metrics.json").read_text(encoding="utf-8"))
    assert metrics["data/truncated"] == 0
    assert metrics["eval/reference/unfinished_rate"] < 0.05
    exported = project.folder / "run/export"
    assert {path.name for path in exported.iterdir()} >= {"cdpo", "reward", "cost"}
    ends = json.loads((exported / "cdpo/generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    assert ends == tokenizer.convert_tokens_to_ids(["<end_of_turn>", "<eos>"])


@pytest.mark.slow
def test_labels_come_from_the_pairs_unless_another_file_is_named(project: Project) -> None:
    keys = ("reward_pairs", "cost_labels", "demonstrations", "evaluation_prompts")
    left_out = [f"dataset.{key}=''" for key in keys]
    config = project.config(*left_out, "stages=[reward,cost,policy,evaluate]", "policy.epochs=1", "evaluation.prompts=3")
    metrics = run(config)
    assert metrics["eval/cdpo/prompts"] == 3
    assert "sft/loss" not in metrics
    assert "eval/sft/cost_mean" not in metrics


def test_dropped_and_truncated_rows_are_counted(project: Project) -> None:
    project.rows["pairs"] += [pair(PROMPTS[0], "", ANSWERS[0]), pair(PROMPTS[1], "  ", ANSWERS[0])]
    project.rows["demonstrations"].append({"prompt": PROMPTS[0], "response": " "})
    project.write()
    metrics = run(project.config("stages=[]", "model.max_response_tokens=4", "dataset.evaluation_prompts=''"))
    assert metrics["data/empty"] == metrics["data/dropped"] == 2
    assert metrics["data_sft/empty"] == 1
    assert metrics["data/truncated"] > 0


BAD_LINES: dict[str, tuple[str, bytes, str]] = {
    "not JSON": ("pairs", b'{"prompt": "a", \n', r"pairs\.jsonl:37: .*JSON"),
    "not an object": ("demonstrations", b"[1, 2]\n", r"demonstrations\.jsonl:25: .*object"),
    "not UTF-8": ("cost_labels", '{"prompt": "caf\xe9"}\n'.encode("latin-1"), r"cost_labels\.jsonl:25: .*UTF-8"),
    "no such column": ("pairs", b'{"prompt": "a", "response_0": "b"}\n', r"pairs\.jsonl:37: .*response_1"),
    "label": ("cost_labels", b'{"prompt": "a", "response": "b", "is_safe": 2}\n', r"cost_labels\.jsonl:25: .*is_safe.*2"),
    "no label": ("cost_labels", b'{"prompt": "a", "response": "b"}\n', r"cost_labels\.jsonl:25: .*is_safe"),
    "not text": ("reward_pairs", b'{"prompt": "a", "chosen": 3, "rejected": "b"}\n', r"reward_pairs\.jsonl:\d+: .*chosen.*3"),
    "empty prompt": ("evaluation_prompts", b'{"prompt": " "}\n', r"evaluation_prompts\.jsonl:7: .*prompt"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_the_error_names_the_bad_line(project: Project, name: str) -> None:
    key, line, pattern = BAD_LINES[name]
    file = project.folder / f"{key}.jsonl"
    file.write_bytes(file.read_bytes() + line)
    message = project.refused()
    assert re.search(pattern, message), message
    with pytest.raises(CDPOError):
        check(project.config())


def test_a_missing_or_empty_file_is_named(project: Project) -> None:
    assert "nowhere.jsonl" in project.refused(f"dataset.pairs={project.folder}/nowhere.jsonl")
    (project.folder / "pairs.jsonl").write_text("")
    assert "pairs.jsonl: " in project.refused()


def test_data_without_a_training_signal_is_refused_before_training(project: Project) -> None:
    for row in project.rows["pairs"]:
        row["response_1"] = row["response_0"]
    project.write()
    assert project.refused().startswith("dataset.pairs: ")
    project.rows = data()
    for row in project.rows["pairs"]:
        del row["better_response_id"]
    project.write()
    assert project.refused("dataset.reward_pairs=''").startswith("the reward model ")
    project.rows = data()
    project.write()
    assert re.search(r"stages .*sft.*dataset\.demonstrations", project.refused("dataset.demonstrations=''"))
    assert not (project.folder / "store").exists()


def test_contradictions_can_be_an_error(project: Project) -> None:
    project.rows["pairs"].append(pair(PROMPTS[0], *ANSWERS[2:4]) | {"is_response_1_safe": True})
    project.rows["pairs"].append(pair(PROMPTS[0], *ANSWERS[2:4]))
    project.write()
    assert "contradict" in project.refused("dataset.on_conflict=error")


def test_a_missing_or_incomplete_model_is_named(project: Project, model: Path) -> None:
    gone = project.folder / "gone"
    assert f"model.path={gone}: " in project.refused(f"model.path={gone}")
    broken = project.folder / "model"
    shutil.copytree(model, broken, ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    assert re.search(rf"model\.path={broken}: .*tokenizer", project.refused(f"model.path={broken}"))
    shutil.rmtree(broken)
    shutil.copytree(model, broken, ignore=shutil.ignore_patterns("*.safetensors"))
    assert f"model.path={broken}: " in project.refused(f"model.path={broken}")
    (broken / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:1000])
    assert f"model.path={broken}: " in project.refused(f"model.path={broken}")
    weights = load_file(model / "model.safetensors")
    left_out = {name: value for name, value in weights.items() if "q_proj" not in name}
    save_file(left_out, broken / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.0.self_attn.q_proj.weight" in project.refused(f"model.path={broken}")
    other = {name: value[:, :16].contiguous() if value.dim() == 2 else value for name, value in weights.items()}
    save_file(other, broken / "model.safetensors", metadata={"format": "pt"})
    assert f"model.path={broken}: " in project.refused(f"model.path={broken}")
    shutil.rmtree(broken)
    broken.mkdir()
    assert f"model.path={broken}" in project.refused(f"model.path={broken}")
    package = "model.path=package:no_such_package"
    assert f"{package}: " in project.refused(package)


def test_a_missing_score_model_is_named_before_training(project: Project, model: Path) -> None:
    assert "/nowhere: " in project.refused("reward.path=/nowhere")
    assert not (project.folder / "run").exists()
    message = project.refused(f"cost.path={model}", "stages=[cost]")
    assert "num_labels=2" in message
    assert str(model) in message


def test_lengths_beyond_the_context_are_refused(project: Project) -> None:
    message = project.refused("model.max_prompt_tokens=30")
    assert message.startswith("model.max_prompt_tokens + model.max_response_tokens = 38: ")
    assert "32" in message, "the context of the model"
    assert not (project.folder / "store").exists()


def test_a_missing_chat_template_is_refused(project: Project) -> None:
    assert "template chat" in project.refused("model.template=chat")


@pytest.mark.parametrize("stages", [pytest.param("[sft,reward,cost,policy]", marks=pytest.mark.slow), "[reward,cost,policy]"])
def test_weights_of_nan_are_refused(project: Project, model: Path, stages: str) -> None:
    broken = project.folder / "model"
    shutil.copytree(model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], torch.nan)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    assert "nan" in project.refused(f"model.path={broken}", f"stages={stages}")


def test_a_learning_rate_that_diverges_is_named(project: Project) -> None:
    message = project.refused("sft.lr=1e30", "sft.epochs=20")
    assert "nan" in message
    assert "lower sft.lr" in message


def test_mode_check_accepts_good_data_and_writes_nothing(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(project.folder.rglob("*"))
    assert check(project.config("mode=check")) is None
    assert sorted(project.folder.rglob("*")) == before
    assert "mode=check" in capsys.readouterr().out


@pytest.mark.parametrize(
    "overrides",
    [["model.max_prompt_tokens=30"], ["model.path=/nowhere"], ["dataset.demonstrations=''"], ["resume=true"],
     ["trainer.strategy=nope"]],
)  # fmt: skip
def test_mode_check_reports_the_errors_of_a_run(project: Project, overrides: list[str]) -> None:
    with pytest.raises(CDPOError):
        check(project.config("mode=check", *overrides))
    assert not (project.folder / "run").exists()


def test_a_policy_is_evaluated_with_published_score_models_and_no_base_model(project: Project) -> None:
    """With the score models and the policy that a run exported: no training, no reference, no KL."""
    trained = run(project.config("policy.epochs=1"))
    exported = [f"{kind}.path={project.folder}/run/export/{kind}" for kind in ("reward", "cost")]
    here = [f"run_dir={project.folder / 'alone'}", f"artifacts_dir={project.folder / 'other'}", "model.path=''"]
    result = evaluate(project.config("mode=evaluate", f"policy={project.folder}/run/export/cdpo", *exported, *here))
    for name in ("reward_mean", "cost_mean", "unsafe_rate"):
        assert result[f"eval/policy/{name}"] == pytest.approx(trained[f"eval/cdpo/{name}"], abs=1e-5), name
    assert not any(key.startswith(("eval/sft", "eval/reference", "eval/policy/kl", "sft/")) for key in result)
    for name in ("reward/pair_accuracy", "cost/auroc", "cost/sign_accuracy"):
        assert result[name] == trained[name], "checked on the same held-out examples as after training"
    assert {path.name for path in (project.folder / "other").iterdir()} == {"reward_check", "cost_check"}


def test_a_published_cost_model_with_the_wrong_sign_is_refused(project: Project) -> None:
    """With sign=-1 a safety score is read as a cost: a model whose sign was right is then worse than chance."""
    run(project.config("policy.epochs=1"))
    path = f"cost.path={project.folder}/run/export/cost"
    right = run(project.config(path, "cost.sign=1", "stages=[cost]", f"run_dir={project.folder}/right"))
    assert right["cost/pair_accuracy"] > 0.5 + 3 * right["cost/pair_accuracy_chance_se"]
    with pytest.raises(ModelError, match=rf"pair_accuracy is {1 - right['cost/pair_accuracy']:.2f}.*cost\.sign"):
        run(project.config(path, "cost.sign=-1", "stages=[cost]", f"run_dir={project.folder}/wrong"))


def test_beavertails_answers_are_paired_and_trained_on(project: Project) -> None:
    """One row per answer, categories as on the hub; one prompt has a single answer, one answer has two labels."""
    rows = [
        {"prompt": p, "response": a, "is_safe": is_safe(a), "category": {"drowning": not is_safe(a)}}
        for p in PROMPTS
        for a in ANSWERS
    ]
    rows += [{"prompt": "how do I grow basil", "response": ANSWERS[0], "is_safe": False, "category": {"drowning": True}}]
    rows += [{"prompt": "when do I plant", "response": ANSWERS[0], "is_safe": True, "category": {"drowning": False}}]
    (project.folder / "bt.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    file = f"{project.folder}/bt.jsonl"
    names = [
        f"dataset.pairs={file}",
        f"dataset.evaluation_prompts={file}",
        "dataset.pairs_source=beavertails",
        "dataset.cost_labels=''",
    ]
    metrics = run(project.config(*names, "policy.epochs=1"))
    assert metrics["data_answers/rows"] == 24 * 5 + 2
    assert metrics["data_answers/contradictory_labels"] == metrics["data_answers/dropped"] == 2
    assert metrics["data/pairs"] == 23 * 4 + 3
    assert metrics["data/unpaired"] == 1
    assert metrics["eval/cdpo/prompts"] == 25
    assert metrics["eval/cdpo/category/drowning/prompts"] == 24
