"""Sources: every shape a data set comes in, and one refusal for every way in which it can be broken."""

import csv
import json
import os
from pathlib import Path

import datasets
import pytest

from cdpo_lightning.data.records import Demonstration, EvaluationPrompt, LabelledAnswer, MultipleChoice, PreferencePair
from cdpo_lightning.data.sources import sources
from cdpo_lightning.data.sources.rows import is_unpinned, read_rows
from cdpo_lightning.errors import ConfigError, DataError

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
    """What the loader says of one row."""

    def message(load, *rows) -> str:
        with pytest.raises(DataError) as error:
            load(write(tmp_path / "rows.jsonl", *rows))
        return str(error.value)

    return message


# The records of each source


def test_pku_pairs_with_and_without_the_better_column(tmp_path):
    file = write(tmp_path / "pku.jsonl", PKU, PKU | {"better_response_id": 1, "is_response_1_safe": "TRUE"})
    first, second = sources.pku_saferlhf(file)
    assert first == PreferencePair("Tea?", "Green.", "Black.", None, 0, True, False)
    assert first.row == "pku.jsonl:1"
    assert second == PreferencePair("Tea?", "Green.", "Black.", 1, 0, True, True)


def test_pku_pairs_of_the_releases_since_2024(tmp_path):
    """Their further columns are not read: models the answers came from, harm categories, severities, hashes."""
    more = {"prompt_source": "x", "response_0_source": "Alpaca3-8B", "response_0_harm_category": {"Drugs": False}}
    more |= {"response_0_severity_level": 0, "response_0_sha256": "ab", "better_response_id": 1}
    [pair] = sources.pku_saferlhf(write(tmp_path / "pku.jsonl", PKU | more))
    assert pair == PreferencePair("Tea?", "Green.", "Black.", 1, 0, True, False)


def test_pku_pairs_of_the_single_dimension(tmp_path):
    row = {"prompt": "Tea?", "response_0": "Green.", "response_1": "Black.", "better_response_id": 1}
    assert sources.pku_saferlhf(write(tmp_path / "pku.jsonl", row)) == [PreferencePair("Tea?", "Green.", "Black.", better=1)]


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
def test_preference_pairs_in_every_shape_of_trl(tmp_path, row):
    [pair] = sources.preference_pairs(write(tmp_path / "trl.jsonl", row))
    assert pair == PreferencePair("Tea?", "Green.", "Black.", better=0)


def test_earlier_turns_of_a_list_stay_in_the_prompt(tmp_path):
    """The same text as the same dialogue of hh-rlhf has."""
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, USER]
    text = "Hi\n\nAssistant: Hello\n\nHuman: Tea?"
    for row in ({"prompt": talk, "chosen": [GREEN], "rejected": [BLACK]}, {"chosen": [*talk, GREEN], "rejected": [*talk, BLACK]}):
        assert sources.preference_pairs(write(tmp_path / "trl.jsonl", row)) == [PreferencePair(text, "Green.", "Black.", better=0)]


def test_whole_dialogues_as_preferences_are_those_of_helpful_base(tmp_path):
    start = "\n\nHuman: Tea?\n\nAssistant:"
    file = write(tmp_path / "hh.jsonl", {"chosen": start + " Green.", "rejected": start + " Black."})
    assert sources.preference_pairs(file) == [PreferencePair("Tea?", "Green.", "Black.", better=0)]


def test_hh_dialogues_keep_earlier_turns_in_the_prompt(tmp_path):
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Tea?\n\nAssistant:"
    file = write(tmp_path / "hh.jsonl", {"chosen": start + " Green.", "rejected": start + " Great: black."})
    [pair] = sources.hh_harmless(file)
    assert pair == PreferencePair("Hi\n\nAssistant: Hello\n\nHuman: Tea?", "Green.", "Great: black.", safer=0)


def test_hh_dialogues_that_part_early(tmp_path):
    chosen = "\n\nHuman: Hi\n\nAssistant: Yes\n\nHuman: Tea?\n\nAssistant: Green."
    [pair] = sources.hh_harmless(write(tmp_path / "hh.jsonl", {"chosen": chosen, "rejected": "\n\nHuman: Hi\n\nAssistant: No"}))
    assert pair == PreferencePair("Hi", "Yes\n\nHuman: Tea?\n\nAssistant: Green.", "No", safer=0)


def test_safety_labels(tmp_path):
    file = write(tmp_path / "labels.jsonl", {"prompt": "Tea?", "response": "", "is_safe": "false", "source": "x"})
    assert sources.safety_labels(file) == [LabelledAnswer("Tea?", "", False)]


PAPER = {"Question": "Tea?", "Best Answer": "Green", "Correct Answers": "Green; It is late", "Incorrect Answers": "Red; Blue; ; No"}
HUB = {"question": "Tea?", "best_answer": "Green", "correct_answers": ["Green", "It is late"]} | {
    "incorrect_answers": ["Red", "Blue", "No"]
}


@pytest.mark.parametrize("row", [PAPER, HUB], ids=["paper", "hub"])
def test_truthfulqa_pairs_each_false_answer_once(tmp_path, row):
    result = sources.truthfulqa(write(tmp_path / "t.jsonl", row))
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
    assert sources.multiple_choice(file) == [MultipleChoice("Tea?", options, options)]


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
    assert sources.demonstrations(write(tmp_path / "sft.jsonl", row)) == [Demonstration(prompt, "Green.")]


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
    assert sources.evaluation_prompts(write(tmp_path / "e.jsonl", row)) == [EvaluationPrompt("Tea?", categories)]


def test_a_prompt_in_several_rows_has_the_categories_of_all(tmp_path):
    """BeaverTails' test split on the hub: a row an answer, and the categories are the answer's."""
    rows = [
        {"prompt": p, "response": "x", "category": {"a": p == "Tea?", "b": i > 1}} for i, p in enumerate(["Tea?", "Milk?", "Tea?"])
    ]
    result = sources.evaluation_prompts(write(tmp_path / "e.jsonl", *rows))
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
    assert sources.refusal_prompts(write(tmp_path / "x.jsonl", {"prompt": "Tea?"} | row)) == [EvaluationPrompt("Tea?", (category,))]


@pytest.mark.parametrize("source", [*sources.PAIR_SOURCES, *sources.LICENCES])
def test_every_source_has_a_one_line_notice(source):
    notice = sources.licence_notice(source)
    assert notice.startswith(f"{source}: ")
    assert "\n" not in notice


# Where rows come from


ROWS = [{"prompt": "N/A", "response": "None"}, {"prompt": "7", "response": 'two\nlines, "quoted" \u2028'}]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "folder", "saved", "saved splits"])
def test_every_kind_of_file_gives_the_same_text(tmp_path, kind):
    file = tmp_path / f"train.{kind}"
    table = datasets.Dataset.from_list(ROWS)
    if kind in {"jsonl", "folder"}:
        write(tmp_path / "train.jsonl", *ROWS)
        write(tmp_path / "test.jsonl", {"prompt": "held out", "response": ""})
    elif kind == "json":
        file.write_text(json.dumps(ROWS), encoding="utf-8")
    elif kind == "csv":
        with file.open("w", encoding="utf-8-sig", newline="") as target:
            writer = csv.DictWriter(target, ["prompt", "response"])
            writer.writeheader()
            writer.writerows(ROWS)
    elif kind == "parquet":
        table.to_parquet(file)
    else:
        (table if kind == "saved" else datasets.DatasetDict(train=table)).save_to_disk(str(file))
    path = tmp_path if kind == "folder" else file
    assert [row for _, row in read_rows(str(path))] == ROWS


def test_utf8_lines_split_only_at_line_feeds(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a\xe2\x80\xa8b"}\r\n\n{"prompt": "c"}')
    assert read_rows(str(tmp_path / "x.jsonl")) == [
        ("x.jsonl:1", {"prompt": "a\u2028b"}),
        ("x.jsonl:3", {"prompt": "c"}),
    ]


def test_limit_takes_the_first_rows(tmp_path):
    file = write(tmp_path / "pku.jsonl", PKU, PKU | {"prompt": "Milk?"}, {})
    assert [pair.prompt for pair in sources.pku_saferlhf(file, limit=2)] == ["Tea?", "Milk?"]
    with pytest.raises(ConfigError, match="limit"):
        read_rows(file, limit=0)


def test_a_hub_name_is_loaded_with_its_split_and_revision(monkeypatch):
    calls = []

    def load(name, **kwargs):
        calls.append((name, kwargs))
        return datasets.Dataset.from_list([PKU | {"is_response_1_safe": False}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    [pair] = sources.pku_saferlhf("PKU-Alignment/PKU-SafeRLHF", split="test", revision="v0")
    assert calls == [("PKU-Alignment/PKU-SafeRLHF", {"split": "test", "revision": "v0"})]
    assert pair.row == "PKU-Alignment/PKU-SafeRLHF[test]:1"


@pytest.mark.parametrize(
    ("path", "name", "options"),
    [
        ("o/n", "o/n", {"split": "train", "revision": "r"}),
        ("o/n@v0", "o/n", {"split": "train", "revision": "v0"}),
        ("o/n:alpaca-7b@v0%30k_test", "o/n", {"name": "alpaca-7b", "split": "30k_test", "revision": "v0"}),
        ("o/n:harmless-base/%test", "o/n", {"data_dir": "harmless-base", "split": "test", "revision": "r"}),
    ],
)
def test_a_hub_name_may_say_part_revision_and_split_itself(monkeypatch, path, name, options):
    calls = []

    def load(path, **kwargs):
        calls.append((path, kwargs))
        return datasets.Dataset.from_list([{"prompt": "Tea?"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    [(location, _)] = read_rows(path, split="train", revision="r")
    assert calls == [(name, options)]
    assert location == f"{name}[{options['split']}]:1"


def test_a_hub_name_without_a_revision_is_not_pinned(tmp_path):
    (tmp_path / "here.jsonl").touch()
    assert is_unpinned("o/n", None)
    assert is_unpinned("o/n%test", None)
    assert not any([is_unpinned("o/n@v0", None), is_unpinned("o/n", "v0"), is_unpinned("", None)])
    assert not is_unpinned(str(tmp_path / "here.jsonl"), None)


def test_a_name_with_a_version_is_a_hub_name(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **_: datasets.Dataset.from_list([{"prompt": name}]))
    assert read_rows("teknium/OpenHermes-2.5")[0][1] == {"prompt": "teknium/OpenHermes-2.5"}


# Refusals


@pytest.mark.parametrize("path", ["gone.jsonl", "./gone", "/gone", "~/gone", "a/b/gone", "", "data/gone.parquet", "/a@b"])
def test_a_missing_file_is_never_looked_for_on_the_hub(monkeypatch, path):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(DataError, match="missing file"):
        read_rows(path)


@pytest.mark.parametrize("path", ["o/n@", "o/n@v0@v1", "o/n%a:b"])
def test_a_hub_name_that_is_none_is_refused(path):
    with pytest.raises(DataError, match="not a hub name such as"):
        read_rows(path)


@pytest.mark.parametrize("error", [ConnectionError("no network"), ValueError("Unknown split"), FileNotFoundError("no")])
def test_a_hub_that_fails_is_refused(monkeypatch, error):
    def load(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match=f"nobody/nothing.*{error}"):
        read_rows("nobody/nothing")


BROKEN_FILES = {
    "not UTF-8": ("x.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}', r"x\.jsonl:2: not UTF-8"),
    "not JSON": ("x.jsonl", b'{"prompt": "a"}\n\n{"prompt": ', r"x\.jsonl:3: not JSON"),
    "too deep": ("x.jsonl", b"[" * 100_000, r"x\.jsonl:1: not JSON"),
    "not an object": ("x.jsonl", b'{"prompt": "a"}\n["a"]', r"x\.jsonl:2: a JSON list, expected an object"),
    "not an array": ("x.json", b'{"prompt": "a"}', "a JSON dict, expected an array"),
    "no rows": ("x.jsonl", b"\n", "holds no rows"),
    "header only": ("x.csv", b"prompt\n", "holds no rows"),
    "cells too many": ("x.csv", b"prompt\na\nb,c\n", r"x\.csv:3: more or fewer cells"),
    "cells too few": ("x.csv", b"prompt,response\na\n", r"x\.csv:2: more or fewer cells"),
    "not CSV": ("x.csv", b'prompt\n"a"b\n', r"x\.csv:2: not CSV"),
    "not parquet": ("x.parquet", b"PAR1 and no more", "not parquet"),
    "unknown kind": ("x.txt", b"a", r"kind '\.txt'"),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file_is_refused_with_its_place(tmp_path, name):
    file, contents, says = BROKEN_FILES[name]
    (tmp_path / file).write_bytes(contents)
    with pytest.raises(DataError, match=says):
        read_rows(str(tmp_path / file))


def test_a_file_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    file = write(tmp_path / "x.jsonl", {})

    def locked(_):
        raise PermissionError("locked")

    monkeypatch.setattr(Path, "read_bytes", locked)
    with pytest.raises(DataError, match=r"x\.jsonl: cannot be read \(locked\)"):
        read_rows(file)


def test_a_folder_without_the_split_is_refused_rather_than_mixed(tmp_path):
    write(tmp_path / "train-00000.jsonl", {"prompt": "a"})
    write(tmp_path / "extra.jsonl", {"prompt": "b"})
    assert len(read_rows(str(tmp_path))) == 1
    with pytest.raises(DataError, match="no file for the split 'test'"):
        read_rows(str(tmp_path), split="test")


def test_a_folder_that_names_no_split_is_read_whole(tmp_path):
    write(tmp_path / "one.jsonl", {"prompt": "a"})
    write(tmp_path / "two.jsonl", {"prompt": "b"})
    assert [location for location, _ in read_rows(str(tmp_path), split="test")] == ["one.jsonl:1", "two.jsonl:1"]


def test_a_saved_data_set_without_the_split_is_refused(tmp_path):
    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(str(tmp_path))
    with pytest.raises(DataError, match="no split 'test', it has train"):
        read_rows(str(tmp_path), split="test")


def test_a_saved_data_set_that_is_not_whole_is_refused(tmp_path):
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match="not a whole save_to_disk folder"):
        read_rows(str(tmp_path))


def test_a_missing_column_is_named_with_those_there(refused):
    says = refused(sources.pku_saferlhf, PKU, {"prompt": "a", "answer": "b"})
    assert "rows.jsonl:2: column response_0 is missing, it has prompt, answer" in says


@pytest.mark.parametrize("value", [None, 3, ["a"], {"a": "b"}])
def test_text_that_is_not_text_is_refused(refused, value):
    assert "rows.jsonl:1: response_1 is" in refused(sources.pku_saferlhf, PKU | {"response_1": value})


def test_half_a_surrogate_pair_is_refused(refused):
    assert "prompt is not valid Unicode" in refused(sources.pku_saferlhf, PKU | {"prompt": "\ud83d"})


@pytest.mark.parametrize("value", [2, -1, "yes", None, 0.5, ""])
@pytest.mark.parametrize("column", ["is_response_0_safe", "safer_response_id", "better_response_id"])
def test_a_label_that_is_no_label_is_refused(refused, column, value):
    says = refused(sources.pku_saferlhf, PKU | {column: value})
    assert f"rows.jsonl:1: {column} is {str(value)!r}, expected 0, 1, true or false" in says


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
def test_dialogues_other_than_one_turn_each_are_refused(refused, turns):
    says = refused(sources.preference_pairs, {"prompt": "Tea?", "chosen": turns, "rejected": "Black."})
    assert "rows.jsonl:1: chosen has turns of" in says


def test_answers_to_different_prompts_are_refused(refused):
    row = {"prompt": "Milk?", "chosen": [USER, GREEN], "rejected": [USER, BLACK]}
    assert "rows.jsonl:1: chosen and rejected answer different prompts" in refused(sources.preference_pairs, row)


def test_preferences_without_any_prompt_are_refused(refused):
    says = refused(sources.preference_pairs, {"chosen": "Green.", "rejected": "Black."})
    assert "column prompt is missing, it has chosen, rejected" in says


@pytest.mark.parametrize("rejected", ["Green.", "\n\nHuman: Milk?\n\nAssistant: No."])
def test_hh_without_a_shared_dialogue_is_refused(refused, rejected):
    says = refused(sources.hh_harmless, {"chosen": "\n\nHuman: Tea?\n\nAssistant: Yes.", "rejected": rejected})
    assert "rows.jsonl:1: no dialogue" in says


def test_an_empty_evaluation_prompt_is_refused(refused):
    assert "rows.jsonl:2: the prompt is empty" in refused(sources.evaluation_prompts, {"prompt": "a"}, {"prompt": " "})


@pytest.mark.parametrize("change", [{"label": "harmful"}, {"type": 3}])
def test_refusal_prompts_with_another_label_are_refused(refused, change):
    says = refused(sources.refusal_prompts, {"prompt": "Tea?"} | change)
    assert "rows.jsonl:1: label is 'harmful', expected safe or unsafe" in says or "rows.jsonl:1: type is '3'" in says


def test_multiple_choice_that_is_none_is_refused(refused):
    fine = {"Green": 1, "Red": 0}
    row = {"question": "Tea?", "mc1_targets": fine, "mc2_targets": fine}
    assert "mc1_targets has 2 true options" in refused(sources.multiple_choice, row | {"mc1_targets": {"a": 1, "b": 1}})
    assert "mc2_targets has no true or no false" in refused(sources.multiple_choice, row | {"mc2_targets": {"a": 1}})
    for broken in ("Green", {"choices": ["a"], "labels": [1, 0]}):
        assert "rows.jsonl:1: " in refused(sources.multiple_choice, row | {"mc2_targets": broken})


def test_answers_that_are_no_list_of_texts_are_refused(refused):
    assert "Incorrect Answers is '3', expected a list" in refused(sources.truthfulqa, PAPER | {"Incorrect Answers": 3})
    assert "Correct Answers is '3' (int), expected text" in refused(sources.truthfulqa, HUB | {"correct_answers": [3]})


def test_the_notice_of_an_unknown_source_is_refused():
    with pytest.raises(DataError, match="source 'pku' is unknown, expected one of pku_saferlhf"):
        sources.licence_notice("pku")


# The files themselves


@pytest.mark.skipif(not DATA.is_dir(), reason="no real data: set CDPO_DATA to its folder")
@pytest.mark.parametrize(
    ("load", "file", "rows"),
    [
        (sources.pku_saferlhf, "pku_saferlhf_pairs.jsonl", 2288),
        (sources.pku_saferlhf, "pku_saferlhf_raw.jsonl", 4435),
        (sources.pku_saferlhf, "pku_saferlhf_full_format.jsonl", 32),
        (sources.safety_labels, "safety_labels.jsonl", 4208),
        (sources.preference_pairs, "helpful_pairs.jsonl", 1620),
        (sources.hh_harmless, "hh_rlhf_harmless.jsonl", 1973),
        (sources.evaluation_prompts, "beavertails_evaluation_prompts.jsonl", 700),
        (sources.evaluation_prompts, "truthfulqa/TruthfulQA.csv", 817),
        (sources.multiple_choice, "truthfulqa/mc_task.json", 817),
        (sources.evaluation_prompts, "xstest_prompts.csv", 450),
        (sources.refusal_prompts, "xstest_prompts.csv", 450),
        (sources.demonstrations, "alpaca_5000.jsonl", 5000),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_every_real_file_loads_whole(load, file, rows):
    assert len(load(str(DATA / file))) == rows


@pytest.mark.skipif(not DATA.is_dir(), reason="no real data: set CDPO_DATA to its folder")
def test_truthfulqa_has_a_pair_for_every_false_answer():
    with (DATA / "truthfulqa/TruthfulQA.csv").open(encoding="utf-8-sig", newline="") as file:
        false = [part for row in csv.DictReader(file) for part in row["Incorrect Answers"].split(";") if part.strip()]
    assert len(sources.truthfulqa(str(DATA / "truthfulqa/TruthfulQA.csv"))) == len(false)


@pytest.mark.skipif(not DATA.is_dir(), reason="no real data: set CDPO_DATA to its folder")
def test_xstest_has_250_safe_prompts_and_200_contrasts():
    result = sources.refusal_prompts(str(DATA / "xstest_prompts.csv"))
    assert [sum(p.categories == (label,) for p in result) for label in ("safe", "unsafe")] == [250, 200]
