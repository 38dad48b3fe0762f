"""Data sources: the records of every column layout, and an error for every broken row."""

import csv
import json
import os
from pathlib import Path
from pkgutil import walk_packages

import datasets
import pytest

from cdpo_lightning.data import sources
from cdpo_lightning.data.reading.rows import read_rows
from cdpo_lightning.data.records import Demonstration, EvaluationPrompt, LabelledAnswer, MultipleChoice, PreferencePair
from cdpo_lightning.data.source_registry import PairSource, notice_line
from cdpo_lightning.data.sources import CHOICE_SOURCES, DEMONSTRATION_SOURCES, LABEL_SOURCES, PAIR_SOURCES, PROMPT_SOURCES
from cdpo_lightning.errors import ConfigError, DataError

REGISTRIES = (PAIR_SOURCES, LABEL_SOURCES, DEMONSTRATION_SOURCES, PROMPT_SOURCES, CHOICE_SOURCES)
read_pku_saferlhf, read_preferences, read_hh_harmless, read_truthfulqa, read_beavertails = (
    PAIR_SOURCES[name]().read for name in ("pku_saferlhf", "preference", "hh_harmless", "truthfulqa", "beavertails")
)
read_safety_labels = LABEL_SOURCES["safety_labels"]().read
read_demonstrations = DEMONSTRATION_SOURCES["demonstrations"]().read
read_evaluation_prompts, read_refusal_prompts = (PROMPT_SOURCES[name]().read for name in ("evaluation_prompts", "refusal_prompts"))
read_multiple_choice = CHOICE_SOURCES["truthfulqa"]().read
DATA = Path(os.environ.get("CDPO_DATA") or Path(__file__).parents[4] / "shared" / "data")
PKU = {
    "prompt": "Tea?",
    "response_0": "Green.",
    "response_1": "Black.",
    "is_response_0_safe": True,
    "is_response_1_safe": 0,
    "safer_response_id": 0,
}


def write(file: Path, *rows) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


@pytest.fixture
def refused(tmp_path):
    """Return a function that gives the error message of a reader for some rows."""

    def error_message(read, *rows) -> str:
        with pytest.raises(DataError) as error:
            read(write(tmp_path / "rows.jsonl", *rows))
        return str(error.value)

    return error_message


# The records of each source


def test_pku_pairs_with_and_without_better_response_id(tmp_path):
    file = write(tmp_path / "pku.jsonl", PKU, PKU | {"better_response_id": 1, "is_response_1_safe": "TRUE"})
    first, second = read_pku_saferlhf(file)
    assert first == PreferencePair("Tea?", "Green.", "Black.", None, 0, True, False)
    assert first.row == "pku.jsonl:1"
    assert second == PreferencePair("Tea?", "Green.", "Black.", 1, 0, True, True)


def test_pku_pairs_of_the_releases_since_2024(tmp_path):
    """Their other columns (model names, harm categories, severities, hashes) are not read."""
    more = {"prompt_source": "x", "response_0_source": "Alpaca3-8B", "response_0_harm_category": {"Drugs": False}}
    more |= {"response_0_severity_level": 0, "response_0_sha256": "ab", "better_response_id": 1}
    [pair] = read_pku_saferlhf(write(tmp_path / "pku.jsonl", PKU | more))
    assert pair == PreferencePair("Tea?", "Green.", "Black.", 1, 0, True, False)


def test_pku_pairs_of_the_single_dimension_release(tmp_path):
    row = {"prompt": "Tea?", "response_0": "Green.", "response_1": "Black.", "better_response_id": 1}
    assert read_pku_saferlhf(write(tmp_path / "pku.jsonl", row)) == [PreferencePair("Tea?", "Green.", "Black.", better=1)]


USER, GREEN, BLACK = (
    {"role": role, "content": text} for role, text in [("user", "Tea?"), ("assistant", "Green."), ("assistant", "Black.")]
)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Tea?", "chosen": "Green.", "rejected": "Black."},
        {"prompt": [USER], "chosen": [GREEN], "rejected": [BLACK]},
        {"chosen": [USER, GREEN], "rejected": [USER, BLACK]},
        {"prompt": "Tea?", "chosen": [USER, GREEN], "rejected": [USER, BLACK]},
    ],
    ids=["text", "turns", "implicit prompt", "prompt twice"],
)
def test_preferences_in_every_column_layout_of_trl(tmp_path, row):
    [pair] = read_preferences(write(tmp_path / "trl.jsonl", row))
    assert pair == PreferencePair("Tea?", "Green.", "Black.", better=0)


def test_earlier_turns_of_a_list_belong_to_the_prompt(tmp_path):
    """The text of the prompt is the same as for the same dialogue in hh-rlhf."""
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, USER]
    text = "Hi\n\nAssistant: Hello\n\nHuman: Tea?"
    for row in ({"prompt": talk, "chosen": [GREEN], "rejected": [BLACK]}, {"chosen": [*talk, GREEN], "rejected": [*talk, BLACK]}):
        assert read_preferences(write(tmp_path / "trl.jsonl", row)) == [PreferencePair(text, "Green.", "Black.", better=0)]


def test_preferences_may_be_whole_dialogues_as_in_helpful_base(tmp_path):
    start = "\n\nHuman: Tea?\n\nAssistant:"
    file = write(tmp_path / "hh.jsonl", {"chosen": start + " Green.", "rejected": start + " Black."})
    assert read_preferences(file) == [PreferencePair("Tea?", "Green.", "Black.", better=0)]


def test_earlier_turns_of_hh_dialogues_belong_to_the_prompt(tmp_path):
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Tea?\n\nAssistant:"
    file = write(tmp_path / "hh.jsonl", {"chosen": start + " Green.", "rejected": start + " Great: black."})
    [pair] = read_hh_harmless(file)
    assert pair == PreferencePair("Hi\n\nAssistant: Hello\n\nHuman: Tea?", "Green.", "Great: black.", safer=0)


def test_hh_dialogues_that_diverge_early(tmp_path):
    chosen = "\n\nHuman: Hi\n\nAssistant: Yes\n\nHuman: Tea?\n\nAssistant: Green."
    [pair] = read_hh_harmless(write(tmp_path / "hh.jsonl", {"chosen": chosen, "rejected": "\n\nHuman: Hi\n\nAssistant: No"}))
    assert pair == PreferencePair("Hi", "Yes\n\nHuman: Tea?\n\nAssistant: Green.", "No", safer=0)


def test_safety_labels(tmp_path):
    file = write(tmp_path / "labels.jsonl", {"prompt": "Tea?", "response": "", "is_safe": "false", "source": "x"})
    assert read_safety_labels(file) == [LabelledAnswer("Tea?", "", False)]


PAPER = {"Question": "Tea?", "Best Answer": "Green", "Correct Answers": "Green; It is late", "Incorrect Answers": "Red; Blue; ; No"}
HUB = {"question": "Tea?", "best_answer": "Green", "correct_answers": ["Green", "It is late"]} | {
    "incorrect_answers": ["Red", "Blue", "No"]
}


@pytest.mark.parametrize("row", [PAPER, HUB], ids=["paper", "hub"])
def test_truthfulqa_gives_one_pair_per_false_answer(tmp_path, row):
    result = read_truthfulqa(write(tmp_path / "t.jsonl", row))
    true_and_false = [("Green", "Red"), ("It is late", "Blue"), ("Green", "No")]
    assert result == [PreferencePair("Tea?", true, false, better=0) for true, false in true_and_false]


@pytest.mark.parametrize(
    "targets",
    [{"Green": 1, "Red": 0}, {"choices": ["Green", "Red"], "labels": [1, 0]}],
    ids=["paper", "hub"],
)
def test_multiple_choice(tmp_path, targets):
    file = write(tmp_path / "mc.jsonl", {"question": "Tea?", "mc1_targets": targets, "mc2_targets": targets})
    options = (("Green", True), ("Red", False))
    assert read_multiple_choice(file) == [MultipleChoice("Tea?", options, options)]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Tea?", "response": "Green."}, "Tea?"),
        ({"instruction": "Tea?", "input": "", "output": "Green."}, "Tea?"),
        ({"instruction": "Tea?", "input": "It is late.", "output": "Green."}, "Tea?\n\nIt is late."),
        ({"instruction": "Tea?", "output": "Green."}, "Tea?"),
    ],
)
def test_demonstrations(tmp_path, row, prompt):
    assert read_demonstrations(write(tmp_path / "sft.jsonl", row)) == [Demonstration(prompt, "Green.")]


@pytest.mark.parametrize(
    ("row", "categories"),
    [
        ({"prompt": "Tea?"}, ()),
        ({"prompt": "Tea?", "category": ""}, ()),
        ({"prompt": "Tea?", "category": "food"}, ("food",)),
        ({"prompt": "Tea?", "category": ["food", "drink"]}, ("food", "drink")),
        ({"prompt": "Tea?", "category": {"food": True, "drugs": False, "drink": 1}}, ("food", "drink")),
        ({"Question": "Tea?", "type": "t"}, ("t",)),
    ],
)
def test_evaluation_prompts(tmp_path, row, categories):
    assert read_evaluation_prompts(write(tmp_path / "e.jsonl", row)) == [EvaluationPrompt("Tea?", categories)]


def test_a_prompt_in_several_rows_has_the_categories_of_all_rows(tmp_path):
    """As in the test split of BeaverTails on the hub: one row per answer, with the categories of the answer."""
    rows = [
        {"prompt": p, "response": "x", "category": {"a": p == "Tea?", "b": i > 1}} for i, p in enumerate(["Tea?", "Milk?", "Tea?"])
    ]
    result = read_evaluation_prompts(write(tmp_path / "e.jsonl", *rows))
    assert result == [EvaluationPrompt("Tea?", ("a", "b")), EvaluationPrompt("Milk?", ())]
    assert [item.row for item in result] == ["e.jsonl:1", "e.jsonl:2"]


@pytest.mark.parametrize(
    ("row", "category"),
    [
        ({"type": "homonyms", "label": "safe"}, "safe"),
        ({"type": "homonyms", "label": "unsafe"}, "unsafe"),
        ({"type": "homonyms"}, "safe"),
        ({"type": "contrast_homonyms"}, "unsafe"),
    ],
)
def test_refusal_prompts_of_both_releases_of_xstest(tmp_path, row, category):
    assert read_refusal_prompts(write(tmp_path / "x.jsonl", {"prompt": "Tea?"} | row)) == [EvaluationPrompt("Tea?", (category,))]


def test_beavertails_answers_are_paired_by_prompt(tmp_path):
    rows = [{"prompt": "Tea?", "response": text, "is_safe": text == "Green."} for text in ("Green.", "Poison.")]
    pair = PreferencePair("Tea?", "Green.", "Poison.", safer=0, safe_0=True, safe_1=False)
    assert read_beavertails(write(tmp_path / "b.jsonl", *rows)) == [pair]


def test_split_revision_and_limit_select_the_rows(monkeypatch):
    calls = []

    def load(name, **kwargs):
        calls.append((name, kwargs))
        return datasets.Dataset.from_list([PKU | {"is_response_1_safe": False}] * 2)

    monkeypatch.setattr(datasets, "load_dataset", load)
    [pair] = read_pku_saferlhf("PKU-Alignment/PKU-SafeRLHF", split="test", revision="v0", limit=1)
    assert calls == [("PKU-Alignment/PKU-SafeRLHF", {"split": "test", "revision": "v0"})]
    assert pair.row == "PKU-Alignment/PKU-SafeRLHF[test]:1"


# The registries


def test_every_module_of_the_folder_registers_a_source():
    modules = {module.name for module in walk_packages(sources.__path__, f"{sources.__name__}.") if not module.ispkg}
    assert modules == {source.__module__ for registry in REGISTRIES for source in registry.values()}


@pytest.mark.parametrize(("registry", "name"), [(registry, name) for registry in REGISTRIES for name in registry])
def test_every_source_has_a_notice_of_one_line(registry, name):
    notice = notice_line(registry, name)
    assert notice.startswith(f"{name}: ")
    assert len(notice) > len(f"{name}: ")
    assert "\n" not in notice


def test_an_unknown_pair_source_is_refused_with_the_key_and_the_nearest_name():
    with pytest.raises(ConfigError, match=r"dataset\.pairs_source=pku_saferlfh: .*did you mean pku_saferlhf\?"):
        PAIR_SOURCES["pku_saferlfh"]


def test_a_pair_source_needs_only_its_records_and_its_notice(tmp_path):
    """The audit of the base class drops the row whose responses are equal."""

    class Questions(PairSource):
        notice = "MIT"

        def records(self, rows):
            return [PreferencePair("Tea?", *row.columns["answers"], better=0, row=row.location) for row in rows]

    file = write(tmp_path / "q.jsonl", {"answers": ["Green.", "Black."]}, {"answers": ["Green.", "Green."]})
    source = Questions()
    assert len(source.read(file)) == 2
    pairs, metrics = source.audited(read_rows(file), "drop", "data_mine")
    assert pairs == [PreferencePair("Tea?", "Green.", "Black.", better=0)]
    assert (metrics["data_mine/pairs"], metrics["data_mine/ties"]) == (1, 1)


# Errors


def test_a_missing_column_is_named_with_the_columns_of_the_row(refused):
    message = refused(read_pku_saferlhf, PKU, {"prompt": "a", "answer": "b"})
    assert "rows.jsonl:2: column response_0 is missing, the row has prompt, answer" in message


@pytest.mark.parametrize("value", [None, 3, {"a": "b"}])
def test_a_value_that_is_not_text_is_refused(refused, value):
    assert "rows.jsonl:1: response_1 is" in refused(read_pku_saferlhf, PKU | {"response_1": value})


def test_a_list_that_holds_no_turns_is_refused(refused):
    assert "rows.jsonl:1: response_1 has turns of [None]" in refused(read_pku_saferlhf, PKU | {"response_1": ["a"]})


def test_half_a_surrogate_pair_is_refused(refused):
    assert "prompt is not valid Unicode" in refused(read_pku_saferlhf, PKU | {"prompt": "\ud83d"})


@pytest.mark.parametrize("value", [2, -1, "maybe", 0.5])
@pytest.mark.parametrize("column", ["is_response_0_safe", "safer_response_id", "better_response_id"])
def test_an_invalid_label_is_refused(refused, column, value):
    message = refused(read_pku_saferlhf, PKU | {column: value})
    assert f"rows.jsonl:1: {column} is {str(value)!r}, expected 0, 1, true or false" in message


@pytest.mark.parametrize(
    "turns",
    [
        [],
        [GREEN, GREEN],
        [USER],
        [{"role": "system", "content": "x"}, GREEN],
        ["Green."],
        [USER, GREEN, GREEN],
        [USER, GREEN, USER],
    ],
)
def test_turns_that_do_not_alternate_are_refused(refused, turns):
    message = refused(read_preferences, {"prompt": "Tea?", "chosen": turns, "rejected": "Black."})
    assert "rows.jsonl:1: chosen has turns of" in message


def test_answers_to_different_prompts_are_refused(refused):
    row = {"prompt": "Milk?", "chosen": [USER, GREEN], "rejected": [USER, BLACK]}
    assert "rows.jsonl:1: chosen and rejected answer different prompts" in refused(read_preferences, row)


def test_preferences_without_a_prompt_are_refused(refused):
    message = refused(read_preferences, {"chosen": "Green.", "rejected": "Black."})
    assert "column prompt is missing, the row has chosen, rejected" in message


@pytest.mark.parametrize("rejected", ["Green.", "\n\nHuman: Milk?\n\nAssistant: No."])
def test_hh_dialogues_without_a_shared_beginning_are_refused(refused, rejected):
    message = refused(read_hh_harmless, {"chosen": "\n\nHuman: Tea?\n\nAssistant: Yes.", "rejected": rejected})
    assert "rows.jsonl:1: no dialogue" in message


def test_an_empty_evaluation_prompt_is_refused(refused):
    assert "rows.jsonl:2: the prompt is empty" in refused(read_evaluation_prompts, {"prompt": "a"}, {"prompt": " "})


@pytest.mark.parametrize("change", [{"label": "harmful"}, {"type": 3}])
def test_refusal_prompts_with_another_label_are_refused(refused, change):
    message = refused(read_refusal_prompts, {"prompt": "Tea?"} | change)
    assert "rows.jsonl:1: label is 'harmful', expected safe or unsafe" in message or "rows.jsonl:1: type is '3'" in message


def test_invalid_multiple_choice_is_refused(refused):
    fine = {"Green": 1, "Red": 0}
    row = {"question": "Tea?", "mc1_targets": fine, "mc2_targets": fine}
    assert "mc1_targets has 2 true options" in refused(read_multiple_choice, row | {"mc1_targets": {"a": 1, "b": 1}})
    assert "mc2_targets has no true or no false" in refused(read_multiple_choice, row | {"mc2_targets": {"a": 1}})
    for broken in ("Green", {"choices": ["a"], "labels": [1, 0]}):
        assert "rows.jsonl:1: " in refused(read_multiple_choice, row | {"mc2_targets": broken})


def test_answers_that_are_not_a_list_of_texts_are_refused(refused):
    assert "Incorrect Answers is '3', expected a list" in refused(read_truthfulqa, PAPER | {"Incorrect Answers": 3})
    assert "Correct Answers is '3' (int), expected text" in refused(read_truthfulqa, HUB | {"correct_answers": [3]})


# The real files


@pytest.mark.skipif(not DATA.is_dir(), reason="no real data: set CDPO_DATA to its folder")
@pytest.mark.parametrize(
    ("read", "file", "rows"),
    [
        (read_pku_saferlhf, "pku_saferlhf_pairs.jsonl", 2288),
        (read_pku_saferlhf, "pku_saferlhf_raw.jsonl", 4435),
        (read_pku_saferlhf, "pku_saferlhf_full_format.jsonl", 32),
        (read_safety_labels, "safety_labels.jsonl", 4208),
        (read_preferences, "helpful_pairs.jsonl", 1620),
        (read_hh_harmless, "hh_rlhf_harmless.jsonl", 1973),
        (read_evaluation_prompts, "beavertails_evaluation_prompts.jsonl", 700),
        (read_evaluation_prompts, "truthfulqa/TruthfulQA.csv", 817),
        (read_multiple_choice, "truthfulqa/mc_task.json", 817),
        (read_evaluation_prompts, "xstest_prompts.csv", 450),
        (read_refusal_prompts, "xstest_prompts.csv", 450),
        (read_demonstrations, "alpaca_5000.jsonl", 5000),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_every_real_file_is_read_completely(read, file, rows):
    assert len(read(str(DATA / file))) == rows


@pytest.mark.skipif(not DATA.is_dir(), reason="no real data: set CDPO_DATA to its folder")
def test_the_real_truthfulqa_has_a_pair_for_every_false_answer():
    with (DATA / "truthfulqa/TruthfulQA.csv").open(encoding="utf-8-sig", newline="") as file:
        false = [part for row in csv.DictReader(file) for part in row["Incorrect Answers"].split(";") if part.strip()]
    assert len(read_truthfulqa(str(DATA / "truthfulqa/TruthfulQA.csv"))) == len(false)


@pytest.mark.skipif(not DATA.is_dir(), reason="no real data: set CDPO_DATA to its folder")
def test_xstest_has_250_safe_prompts_and_200_contrasts():
    result = read_refusal_prompts(str(DATA / "xstest_prompts.csv"))
    assert [sum(p.categories == (label,) for p in result) for label in ("safe", "unsafe")] == [250, 200]
