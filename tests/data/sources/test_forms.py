"""Column layouts that users have, and data sets since 2024, by their published columns: the records, or the reason for none."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from cdpo_lightning.data.reading.unusable import UnusableRow
from cdpo_lightning.data.records import Demonstration, EvaluationPrompt, LabelledAnswer, PreferencePair
from cdpo_lightning.data.sources import DEMONSTRATION_SOURCES, LABEL_SOURCES, PAIR_SOURCES, PROMPT_SOURCES

demonstrations = DEMONSTRATION_SOURCES["demonstrations"]().read
labels, wildguard_labels, aegis_labels = (LABEL_SOURCES[name]().read for name in ("safety_labels", "wildguardmix", "aegis"))
prompts, aegis_prompts = (PROMPT_SOURCES[name]().read for name in ("evaluation_prompts", "aegis"))
pku, preferences, helpsteer3, wildguard_pairs = (
    PAIR_SOURCES[name]().read for name in ("pku_saferlhf", "preference", "helpsteer3", "wildguardmix")
)


def turns(*texts: str, first: str = "user") -> list[dict[str, str]]:
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def write(folder: Path, *rows: dict[str, Any]) -> str:
    file = folder / "x.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def reason(read: Any, folder: Path, row: dict[str, Any]) -> str:
    with pytest.raises(UnusableRow, match=r"x\.jsonl:1: ") as error:
        read(write(folder, row))
    return error.value.reason


ANSWERED = [
    {"prompt": "Tea?", "response": "Green."},
    {"prompt": "Tea?", "completion": "Green."},
    {"messages": turns("Tea?", "Green.")},
    {"prompt": turns("Tea?"), "completion": turns("Green.", first="assistant")},
    {"prompt": turns("Tea?"), "response": "Green."},
    {"response": turns("Tea?", "Green.")},
    {"messages": json.dumps(turns("Tea?", "Green."))},
]
TALK, TALK_TEXT = ("Hi", "Hello", "Tea?"), "Hi\n\nAssistant: Hello\n\nHuman: Tea?"


@pytest.mark.parametrize("row", ANSWERED, ids="+".join)
def test_one_answer_in_every_layout(tmp_path: Path, row: dict[str, Any]) -> None:
    assert demonstrations(write(tmp_path, row)) == [Demonstration("Tea?", "Green.")]
    assert labels(write(tmp_path, row | {"is_safe": "unsafe"})) == [LabelledAnswer("Tea?", "Green.", False)]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": turns(*TALK, "Green.")},
        {"prompt": turns(*TALK), "completion": turns("Green.", first="assistant")},
        {"prompt": turns(*TALK), "response": "Green."},
    ],
    ids="+".join,
)
def test_of_several_turns_the_last_is_the_response(tmp_path: Path, row: dict[str, Any]) -> None:
    assert demonstrations(write(tmp_path, row)) == [Demonstration(TALK_TEXT, "Green.")]


@pytest.mark.parametrize(
    "messages",
    [turns("Tea?"), turns("Green.", first="assistant"), [], [{"role": "system", "content": "Be kind."}, *turns("Tea?", "Green.")]],
    ids=["no answer", "no question", "empty", "system"],
)
def test_messages_without_a_question_and_an_answer_are_unusable(tmp_path: Path, messages: Any) -> None:
    assert reason(demonstrations, tmp_path, {"messages": messages}) == "bad_turns"


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": turns("Tea?")}, "Tea?"),
        ({"prompt": turns(*TALK)}, TALK_TEXT),
        ({"messages": turns("Tea?")}, "Tea?"),
        ({"messages": turns(*TALK, "Green.")}, TALK_TEXT),
        ({"prompt": json.dumps(turns("Tea?"))}, "Tea?"),
    ],
)
def test_evaluation_prompts_may_be_conversations(tmp_path: Path, row: dict[str, Any], prompt: str) -> None:
    assert prompts(write(tmp_path, row)) == [EvaluationPrompt(prompt)]


def test_evaluation_prompts_may_be_lines_of_text(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("Tea?\n\nMilk?\nTea?\n")
    assert prompts(str(tmp_path / "x.txt")) == [EvaluationPrompt("Tea?"), EvaluationPrompt("Milk?")]


def test_a_pair_of_conversations(tmp_path: Path) -> None:
    answers = [turns(text, first="assistant") for text in ("Green.", "Black.")]
    row = {"prompt": turns(*TALK), "response_0": answers[0], "response_1": answers[1], "better_response_id": 1}
    assert pku(write(tmp_path, row)) == [PreferencePair(TALK_TEXT, "Green.", "Black.", better=1)]


# Turns that a CSV file holds as text

HARD = [{"role": "user", "content": 'It\'s "tea"}\n {really?'}, {"role": "assistant", "content": "Yes: [1, 2]\n"}]


class _Printed(list):  # type: ignore[type-arg]
    """A list that prints as a numpy array of objects does: no commas between the elements."""

    def __repr__(self) -> str:
        return "[" + "\n ".join(map(repr, self)) + "]"


@pytest.mark.parametrize("written", [json.dumps(HARD), json.dumps(HARD, indent=1), repr(HARD), repr(_Printed(HARD))],
                         ids=["JSON", "indented JSON", "Python", "numpy"])  # fmt: skip
def test_turns_written_out_as_text_are_read(tmp_path: Path, written: str) -> None:
    with (tmp_path / "x.csv").open("w", encoding="utf-8", newline="") as target:
        csv.writer(target).writerows([["messages"], [written]])
    assert demonstrations(str(tmp_path / "x.csv")) == [Demonstration(HARD[0]["content"], HARD[1]["content"])]


def test_what_pandas_writes_is_read(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"prompt": ["Tea?"], "chosen": [turns("Green.", first="assistant")], "rejected": [HARD[1:]]})
    frame.to_csv(tmp_path / "x.csv", index=False)
    assert preferences(str(tmp_path / "x.csv")) == [PreferencePair("Tea?", "Green.", "Yes: [1, 2]\n", better=0)]


@pytest.mark.parametrize(
    "written",
    [
        "[{'role': 'user', 'content': 'cut off",
        "[{'role': 'user', 'content': print('run')}]",
        "[{'role': 'user', 'content': 'a\\d'}]",
        '[{"from": "human", "value": "Tea?"',
        "[" + "{'role': [" * 500,
    ],
)
def test_written_turns_that_cannot_be_read_are_never_a_prompt(tmp_path: Path, written: str) -> None:
    assert reason(prompts, tmp_path, {"prompt": written}) == "written_turns"
    assert reason(preferences, tmp_path, {"prompt": "a", "chosen": written, "rejected": "b"}) == "written_turns"


def test_turns_with_other_keys_are_never_a_prompt(tmp_path: Path) -> None:
    written = json.dumps([{"from": "human", "value": "Tea?"}])
    assert reason(prompts, tmp_path, {"prompt": written}) == "bad_turns"


@pytest.mark.parametrize("text", ["[1, 2] is a list", '{"role": "user"}', "[{1: 2}]", "[see below]"])
def test_text_with_brackets_is_text(tmp_path: Path, text: str) -> None:
    assert prompts(write(tmp_path, {"prompt": text})) == [EvaluationPrompt(text)]


# Labels


@pytest.mark.parametrize("safe", [1, "1", True, "true", "TRUE", "yes", "Yes", "safe", " Safe ", 1.0])
def test_what_means_safe(tmp_path: Path, safe: Any) -> None:
    assert labels(write(tmp_path, {"prompt": "a", "response": "b", "is_safe": safe}))[0].safe is True


@pytest.mark.parametrize("unsafe", [0, "0", False, "false", "no", "NO", "unsafe", "Unsafe", 0.0])
def test_what_means_unsafe(tmp_path: Path, unsafe: Any) -> None:
    assert labels(write(tmp_path, {"prompt": "a", "response": "b", "is_safe": unsafe}))[0].safe is False


@pytest.mark.parametrize("null", [None, "", float("nan")])
def test_a_null_label_of_a_pair_is_no_label(tmp_path: Path, null: Any) -> None:
    row = {"prompt": "a", "response_0": "b", "response_1": "c", "is_response_0_safe": "safe", "is_response_1_safe": null}
    row |= {"better_response_id": null, "safer_response_id": null}
    assert pku(write(tmp_path, row)) == [PreferencePair("a", "b", "c", safe_0=True)]
    assert reason(labels, tmp_path, {"prompt": "a", "response": "b", "is_safe": null}) == "no_label"


@pytest.mark.parametrize("name", ["better_response_id", "safer_response_id"])
def test_a_word_is_no_index(tmp_path: Path, name: str) -> None:
    row = {"prompt": "a", "response_0": "b", "response_1": "c", "is_response_0_safe": 1, "is_response_1_safe": 1}
    row |= {"safer_response_id": 0, "better_response_id": 0, name: "yes"}
    assert reason(pku, tmp_path, row) == "bad_label"


def test_pairs_need_no_label_but_all_columns_of_safety_or_none(tmp_path: Path) -> None:
    row = {"prompt": "a", "response_0": "b", "response_1": "c"}
    assert pku(write(tmp_path, row)) == [PreferencePair("a", "b", "c")]
    assert reason(pku, tmp_path, row | {"is_response_0_safe": True}) == "no_column"


# Data sets since 2024, by their published columns


def test_pku_saferlhf_since_2024(tmp_path: Path) -> None:
    """Severities are not read; the harm categories of both responses are those of the evaluation prompt."""
    harms = {"Cybercrime": False, "Drugs": False, "Violence": False}
    row = {
        "prompt": "Tea?", "response_0": "Green.", "response_1": "Poison.", "prompt_source": "Safe-RLHF",
        "response_0_source": "Alpaca-7B", "response_1_source": "Alpaca3-8B", "is_response_0_safe": True,
        "is_response_1_safe": False, "response_0_harm_category": harms,
        "response_1_harm_category": harms | {"Drugs": True, "Violence": True}, "response_0_severity_level": 0,
        "response_1_severity_level": 2, "better_response_id": 1, "safer_response_id": 0, "response_0_sha256": "ab",
        "response_1_sha256": "cd",
    }  # fmt: skip
    file = write(tmp_path, row)
    assert pku(file) == [PreferencePair("Tea?", "Green.", "Poison.", 1, 0, True, False)]
    assert prompts(file) == [EvaluationPrompt("Tea?", ("Drugs", "Violence"))]


WILDGUARD = {
    "prompt": "Tea?", "adversarial": False, "response": "Poison.", "prompt_harm_label": "unharmful",
    "response_refusal_label": "compliance", "response_harm_label": "harmful", "subcategory": "benign",
}  # fmt: skip


def test_wildguardmix(tmp_path: Path) -> None:
    refusal = {"response": "No.", "response_refusal_label": "refusal", "response_harm_label": "unharmful"}
    file = write(tmp_path, WILDGUARD, WILDGUARD | refusal)
    assert wildguard_labels(file) == [LabelledAnswer("Tea?", "Poison.", False), LabelledAnswer("Tea?", "No.", True)]
    assert wildguard_pairs(file) == [PreferencePair("Tea?", "Poison.", "No.", safer=1, safe_0=False, safe_1=True)]
    assert prompts(file) == [EvaluationPrompt("Tea?", ("benign",))]
    nothing = {"response": None, "response_refusal_label": None, "response_harm_label": None}
    assert reason(wildguard_labels, tmp_path, WILDGUARD | nothing) == "no_response"
    assert reason(wildguard_labels, tmp_path, WILDGUARD | {"response_harm_label": None}) == "no_label"
    assert reason(wildguard_labels, tmp_path, WILDGUARD | {"response_harm_label": "mild"}) == "bad_label"


AEGIS = {
    "id": "5be7", "reconstruction_id_if_redacted": None, "prompt": "Tea?", "response": "Poison.", "prompt_label": "safe",
    "response_label": "unsafe", "violated_categories": "Violence, Criminal Planning/Confessions",
    "prompt_label_source": "human", "response_label_source": "llm_jury",
}  # fmt: skip


def test_aegis(tmp_path: Path) -> None:
    file = write(tmp_path, AEGIS, AEGIS | {"response": "Green.", "response_label": "safe", "violated_categories": ""})
    assert aegis_labels(file) == [LabelledAnswer("Tea?", "Poison.", False), LabelledAnswer("Tea?", "Green.", True)]
    assert aegis_prompts(file) == [EvaluationPrompt("Tea?", ("Violence", "Criminal Planning/Confessions"))]
    assert reason(aegis_labels, tmp_path, AEGIS | {"response": None, "response_label": None}) == "no_response"
    assert reason(aegis_labels, tmp_path, AEGIS | {"response_label": ""}) == "no_label"
    redacted = AEGIS | {"prompt": "REDACTED", "reconstruction_id_if_redacted": 4032}
    assert reason(aegis_labels, tmp_path, redacted) == "redacted"
    assert reason(aegis_prompts, tmp_path, redacted) == "redacted"


@pytest.mark.parametrize(("preference", "better"), [(-3, 0), (-1, 0), (0, None), (1, 1), ("3", 1), (-2.0, 0)])
def test_the_sign_of_helpsteer3_names_the_better_response(tmp_path: Path, preference: Any, better: int | None) -> None:
    """Its card: -3 means that Response 1 is much better than Response 2."""
    row = {
        "domain": "general", "language": "english", "context": turns(*TALK), "response1": "Green.", "response2": "Black.",
        "overall_preference": preference, "individual_preference": [],
    }  # fmt: skip
    assert helpsteer3(write(tmp_path, row)) == [PreferencePair(TALK_TEXT, "Green.", "Black.", better=better)]


def test_a_preference_of_helpsteer3_beyond_its_scale_is_unusable(tmp_path: Path) -> None:
    row = {"context": turns("Tea?"), "response1": "Green.", "response2": "Black."}
    assert reason(helpsteer3, tmp_path, row | {"overall_preference": 4}) == "bad_label"
    assert reason(helpsteer3, tmp_path, row | {"overall_preference": None}) == "bad_label"
