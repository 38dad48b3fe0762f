"""Every file of conf/dataset that names hub data sets gives the records of a run, with the published columns of those data sets."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from omegaconf import OmegaConf

from cdpo_lightning.config import EvaluationConfig, FilesConfig
from cdpo_lightning.data.corpus import Corpus, load_corpus
from cdpo_lightning.data.sources import PAIR_SOURCES

CONF = Path(__file__).resolve().parents[2] / "conf" / "dataset"
PROMPTS = [f"Question {number}?" for number in range(40)]
ANSWERS = {"Green tea.": True, "Poison.": False}


def pku_saferlhf() -> list[dict[str, Any]]:
    answers = {
        f"{key}_{i}{end}": value
        for i, harmful in enumerate((False, True))
        for key, end, value in [
            ("response", "", list(ANSWERS)[i]),
            ("response", "_source", "Alpaca-7B"),
            ("response", "_harm_category", {"Drugs": harmful, "Violence": False}),
            ("response", "_severity_level", 2 * harmful),
            ("response", "_sha256", "ab"),
            ("is_response", "_safe", not harmful),
        ]
    }
    return [{"prompt": p, "prompt_source": "x", **answers, "better_response_id": 1, "safer_response_id": 0} for p in PROMPTS]


def alpaca() -> list[dict[str, Any]]:
    return [{"instruction": p, "input": "", "output": "Green tea.", "text": "..."} for p in PROMPTS]


def helpsteer3() -> list[dict[str, Any]]:
    row = {"domain": "general", "language": "english", "response1": "Green tea.", "response2": "Poison."}
    return [
        row | {"context": [{"role": "user", "content": p}], "overall_preference": i % 7 - 3, "individual_preference": []}
        for i, p in enumerate(PROMPTS)
    ]


def wildguardmix() -> list[dict[str, Any]]:
    row = {"adversarial": True, "prompt_harm_label": "harmful", "subcategory": "cyberattack"}
    answered = [
        row | {"prompt": p, "response": text, "response_refusal_label": "refusal" if safe else "compliance"}
        | {"response_harm_label": "unharmful" if safe else "harmful"}
        for p in PROMPTS for text, safe in ANSWERS.items()
    ]  # fmt: skip
    alone = {"response": None, "response_refusal_label": None, "response_harm_label": None}
    return [*answered, *(row | {"prompt": p} | alone for p in PROMPTS)]


def aegis() -> list[dict[str, Any]]:
    row = {"id": "a", "reconstruction_id_if_redacted": None, "prompt_label": "unsafe", "prompt_label_source": "human"}
    row |= {"violated_categories": "Violence, Guns and Illegal Weapons"}
    answered = [
        row | {"prompt": p, "response": text, "response_label": "safe" if safe else "unsafe", "response_label_source": "llm_jury"}
        for p in PROMPTS for text, safe in ANSWERS.items()
    ]  # fmt: skip
    alone = [row | {"prompt": p, "response": None, "response_label": None, "response_label_source": None} for p in PROMPTS]
    return [*answered, *alone, alone[0] | {"prompt": "REDACTED", "reconstruction_id_if_redacted": 7}]


HUB = {
    "PKU-Alignment/PKU-SafeRLHF": pku_saferlhf,
    "tatsu-lab/alpaca": alpaca,
    "nvidia/HelpSteer3": helpsteer3,
    "allenai/wildguardmix": wildguardmix,
    "nvidia/Aegis-AI-Content-Safety-Dataset-2.0": aegis,
}
FILES = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem not in {"closed_form", "pku_saferlhf"})
FILES = [name for name in FILES if any(repository in (CONF / f"{name}.yaml").read_text(encoding="utf-8") for repository in HUB)]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str]]:
    """Serve the data sets in place of the hub; return the list of calls: name, configuration, split."""
    calls: list[tuple[str, str | None, str]] = []

    def load(repository: str, name: str | None = None, *, split: str, revision: str | None) -> datasets.Dataset:
        calls.append((repository, name, split))
        return datasets.Dataset.from_list(HUB[repository]())

    monkeypatch.setattr(datasets, "load_dataset", load)
    return calls


def loaded(name: str, **keys: object) -> Corpus:
    values = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert isinstance(values, dict)
    return load_corpus(FilesConfig(**{**values, **keys}), EvaluationConfig(), 0)  # type: ignore[arg-type]


def test_all_data_sets_are_tested() -> None:
    assert set(FILES) >= {"aegis2", "helpsteer3", "pku_saferlhf_2024", "wildguardmix"}


@pytest.mark.parametrize("name", FILES)
def test_a_data_set_trains_every_stage_but_sft(hub: list[Any], name: str) -> None:
    corpus = loaded(name)
    assert corpus.pairs
    assert all(pair.prompt in PROMPTS for pair in corpus.pairs)
    assert {example.preferred for example in corpus.reward.train} <= {0, 1}
    assert corpus.reward.train
    assert {sign for example in corpus.cost.train for sign in example.signs} == {-1, 1}
    assert any(prompt.categories for prompt in corpus.prompts)
    assert len(corpus.prompts) == len(PROMPTS)
    assert all("REDACTED" not in prompt.prompt for prompt in corpus.prompts)
    assert {repository for repository, *_ in hub} <= set(HUB)


def test_the_parts_and_splits_are_those_of_the_hub(hub: list[Any]) -> None:
    for name in FILES:
        loaded(name)
    assert set(hub) == {
        ("PKU-Alignment/PKU-SafeRLHF", None, "train"),
        ("PKU-Alignment/PKU-SafeRLHF", None, "test"),
        ("tatsu-lab/alpaca", None, "train"),
        ("nvidia/HelpSteer3", "preference", "train"),
        ("allenai/wildguardmix", "wildguardtrain", "train"),
        ("allenai/wildguardmix", "wildguardtest", "test"),
        ("nvidia/Aegis-AI-Content-Safety-Dataset-2.0", None, "train"),
        ("nvidia/Aegis-AI-Content-Safety-Dataset-2.0", None, "test"),
    }


def test_prompts_without_a_response_are_counted(hub: list[Any]) -> None:
    """WildGuardMix is read twice, for the pairs and for the labels, and so is each of its 40 rows without a response."""
    metrics = loaded("wildguardmix").metrics
    assert metrics["data/unusable/no_response"] == 80
    metrics = loaded("helpsteer3").metrics
    assert metrics["data/unusable/no_response"] == 41, "of its labels: the row with a redacted prompt has no response either"
    assert metrics["data/unusable/redacted"] == 1, "it is an evaluation prompt too"


@pytest.mark.parametrize("name", FILES)
def test_a_data_set_names_a_source_that_exists(name: str) -> None:
    assert OmegaConf.load(CONF / f"{name}.yaml").pairs_source in PAIR_SOURCES
