"""The files of a run: columns are renamed, unusable rows are an error or counted by reason, and nothing is left out silently."""

import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from cdpo_lightning.config import EvaluationConfig, FilesConfig
from cdpo_lightning.data.corpus import Corpus, load_corpus
from cdpo_lightning.data.records import PreferencePair
from cdpo_lightning.errors import ConfigError, DataError

TURN = {"role": "user", "content": "Tea?"}


def write(file: Path, *rows: object) -> str:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def corpus(pairs: str, source: str = "preference", **keys: object) -> Corpus:
    return load_corpus(FilesConfig(pairs=pairs, pairs_source=source, **keys), EvaluationConfig(), 0)


# Ten kinds of odd rows; each is the broken line, or what it changes in a row.
ODD: dict[str, list[str | dict[str, object]]] = {
    "not_json": ['{"prompt": "cut off'],
    "not_object": ['["a", "list"]'],
    "not_utf8": ["\udcff"],  # written as the byte 0xff
    "no_column": [{"response_1": ...}],
    "not_text": [{"response_0": 3}, {"prompt": None}],
    "not_unicode": [{"prompt": "half a pair \ud83d"}],
    "bad_label": [{"is_response_0_safe": "maybe"}, {"better_response_id": 2}],
    "bad_turns": [{"prompt": [{"role": "system", "content": "Be kind."}, TURN]}],
    "written_turns": [{"prompt": "[{'role': 'user', 'content': 'Tea?'"}],
    "two_prompts": [{"response_0": [{"role": "user", "content": "Milk?"}, {"role": "assistant", "content": "No."}]}],
}
ODD_ROWS = 100


def generated(folder: Path) -> tuple[str, dict[int, str]]:
    """Write 10,000 pairs, of which 1 % are odd; return the file, and the kind of each odd row by its line."""
    draw = random.Random(1)
    odd = dict(zip(sorted(draw.sample(range(10_000), ODD_ROWS)), list(ODD) * 10, strict=True))
    lines = []
    for number in range(10_000):
        row: dict[str, object] = {
            "prompt": f"Question {number}?", "response_0": f"Yes, {number}.", "response_1": f"No, {number}.",
            "is_response_0_safe": True, "is_response_1_safe": False, "safer_response_id": 0, "better_response_id": number % 2,
        }  # fmt: skip
        kind = odd.get(number)
        change = draw.choice(ODD[kind]) if kind else {}
        if isinstance(change, str):
            lines.append(change)
        else:
            lines.append(json.dumps({name: content for name, content in (row | change).items() if content is not ...}))
    file = folder / "generated.jsonl"
    file.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    return str(file), {number + 1: kind for number, kind in odd.items()}


def test_odd_rows_of_ten_kinds_are_dropped_and_counted(tmp_path: Path) -> None:
    file, odd = generated(tmp_path)
    start = time.process_time()
    result = corpus(file, "pku_saferlhf", on_unusable="drop")
    assert time.process_time() - start < 3
    assert {key.removeprefix("data/unusable/"): n for key, n in result.metrics.items() if "unusable" in key} == Counter(
        odd.values()
    )
    assert sum(Counter(odd.values()).values()) == ODD_ROWS
    assert result.metrics["data/rows"] == result.metrics["data/pairs"] == 10_000 - ODD_ROWS
    assert len(result.prompts) == 10_000 - ODD_ROWS


def test_the_first_odd_row_is_named_and_the_run_stops(tmp_path: Path) -> None:
    """A file is read before its rows become records, so that a line that cannot be read comes before the others."""
    file, odd = generated(tmp_path)
    first = min(line for line, kind in odd.items() if kind in {"not_json", "not_object", "not_utf8"})
    with pytest.raises(DataError, match=rf"^generated\.jsonl:{first}: "):
        corpus(file, "pku_saferlhf")
    lines = Path(file).read_bytes().split(b"\n")
    readable = [line for number, line in enumerate(lines, 1) if odd.get(number) not in {"not_json", "not_object", "not_utf8"}]
    Path(file).write_bytes(b"\n".join(readable))
    with pytest.raises(DataError, match=rf"^generated\.jsonl:{_first_odd(readable)}: "):
        corpus(file, "pku_saferlhf")


def _first_odd(lines: list[bytes]) -> int:
    """Return the first line that is not as the others are: each good row has the same columns, all of them texts or labels."""
    for number, line in enumerate(lines, 1):
        row = json.loads(line)
        texts = [row.get(name) for name in ("prompt", "response_0", "response_1")]
        labels = [row["is_response_0_safe"], row["better_response_id"]]
        plain = all(isinstance(text, str) and text.startswith(("Question", "Yes", "No")) for text in texts)
        if not plain or labels not in ([True, 0], [True, 1]):
            return number
    raise AssertionError("no odd row")


def test_what_was_left_out_is_on_the_screen_with_its_first_row(tmp_path: Path) -> None:
    good = {"prompt": "Tea?", "chosen": "Green.", "rejected": "Black."}
    pairs = write(tmp_path / "pairs.jsonl", good, "{", good | {"rejected": 3}, good | {"prompt": "Milk?"})
    labels = write(
        tmp_path / "labels.jsonl", {"prompt": "a", "response": "b"}, {"prompt": "a", "response": "b", "is_safe": "unsafe"}
    )
    result = corpus(pairs, cost_labels=labels, on_unusable="drop")
    counts = {key: n for key, n in result.metrics.items() if key.startswith("data/unusable/")}
    assert counts == {"data/unusable/not_json": 1, "data/unusable/not_text": 1, "data/unusable/no_column": 1}
    of_pairs, of_labels = (line for line in result.notices if "cannot be used" in line)
    assert "2 rows" in of_pairs
    assert "pairs.jsonl:2: not JSON" in of_pairs
    assert "1 row cannot be used" in of_labels
    assert "labels.jsonl:1: column is_safe is missing" in of_labels


def test_unusable_rows_of_the_evaluation_files_are_counted_too(tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", {"prompt": "Tea?", "chosen": "Green.", "rejected": "Black."})
    prompts = write(tmp_path / "xstest.jsonl", {"prompt": "a", "label": "safe"}, {"prompt": "b", "label": "good"})
    config = FilesConfig(pairs=pairs, pairs_source="preference", on_unusable="drop")
    result = load_corpus(config, EvaluationConfig(refusal_prompts=prompts), 0)
    assert [item.prompt for item in result.refusal_prompts] == ["a"]
    assert result.metrics["data/unusable/bad_label"] == 1


@pytest.mark.parametrize("line", ["{", {"prompt": "a", "answer": "b"}], ids=["unreadable", "no record"])
def test_a_file_without_a_usable_row_is_refused_in_one_line(tmp_path: Path, line: object) -> None:
    with pytest.raises(DataError, match=r"2 rows cannot be used.*pairs\.jsonl:1") as error:
        corpus(write(tmp_path / "pairs.jsonl", line, line), on_unusable="drop")
    assert "\n" not in str(error.value)


# Columns


def test_columns_are_renamed_in_every_file_that_has_them(tmp_path: Path) -> None:
    pairs = write(tmp_path / "p.jsonl", {"question": "Tea?", "good": "Green.", "bad": "Black."})
    labels = write(tmp_path / "l.jsonl", {"question": "Tea?", "response": "Green.", "is_safe": "safe"})
    result = corpus(pairs, cost_labels=labels, held_out=1e-9, columns={"prompt": "question", "chosen": "good", "rejected": "bad"})
    assert result.pairs == [PreferencePair("Tea?", "Green.", "Black.", better=0)]
    assert [(example.responses, example.signs) for example in result.cost.train] == [(("Green.",), (-1,))]


def test_two_columns_can_change_names(tmp_path: Path) -> None:
    pairs = write(tmp_path / "p.jsonl", {"prompt": "Tea?", "chosen": "Black.", "rejected": "Green."})
    result = corpus(pairs, held_out=1e-9, columns={"chosen": "rejected", "rejected": "chosen"})
    assert result.pairs == [PreferencePair("Tea?", "Green.", "Black.", better=0)]


def test_a_column_that_no_file_has_is_refused(tmp_path: Path) -> None:
    pairs = write(tmp_path / "p.jsonl", {"prompt": "Tea?", "chosen": "Green.", "rejected": "Black."})
    with pytest.raises(ConfigError, match=r"dataset\.columns\.prompt=questoin: .*chosen, prompt, rejected"):
        corpus(pairs, columns={"prompt": "questoin"})


# The source of a file


def test_the_other_files_are_read_by_the_source_whose_columns_they_have(tmp_path: Path) -> None:
    pair = {"prompt": "Tea?", "response_0": "Green.", "response_1": "Poison."}
    reward = {"context": [TURN], "response1": "Green.", "response2": "Black.", "overall_preference": -2}
    label = {"prompt": "Tea?", "response": "Green.", "response_label": "safe", "violated_categories": ""}
    prompt = {"prompt": "Poison?", "violated_categories": "Violence, Criminal Planning/Confessions"}
    result = corpus(
        write(tmp_path / "pairs.jsonl", pair),
        "pku_saferlhf",
        reward_pairs=write(tmp_path / "reward.jsonl", reward),
        cost_labels=write(tmp_path / "labels.jsonl", label),
        evaluation_prompts=write(tmp_path / "prompts.jsonl", prompt),
        held_out=1e-9,
    )
    assert result.pairs == [PreferencePair("Tea?", "Green.", "Poison.")], "a pair without a label trains the policy all the same"
    assert [(item.responses, item.preferred) for item in result.reward.train] == [(("Green.", "Black."), 0)]
    assert [(item.responses, item.signs) for item in result.cost.train] == [(("Green.",), (-1,))]
    assert result.prompts[0].categories == ("Violence", "Criminal Planning/Confessions")
    assert [notice.partition(":")[0] for notice in result.notices] == ["pku_saferlhf", "helpsteer3", "aegis"]
    assert result.metrics["data/missing"] == 1


def test_answers_that_are_in_a_pair_are_not_labels_as_well(tmp_path: Path) -> None:
    rows = [{"prompt": "Tea?", "response": text, "is_safe": text == "Green."} for text in ("Green.", "Poison.", "Bleach.")]
    file = write(tmp_path / "b.jsonl", *rows)
    result = corpus(file, "beavertails", cost_labels=file, held_out=1e-9)
    assert len(result.pairs) == 2
    assert len(result.cost.train) == 2


def test_a_file_with_the_columns_of_two_sources_is_read_by_the_usual_one(tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", {"prompt": "Tea?", "chosen": "Green.", "rejected": "Black."})
    labels = {"prompt": "Tea?", "response": "Green.", "is_safe": True, "response_label": "unsafe"}
    result = corpus(pairs, cost_labels=write(tmp_path / "labels.jsonl", labels), held_out=1e-9)
    assert [item.signs for item in result.cost.train] == [(-1,)]


def test_two_column_names_may_be_one_column_of_a_file(tmp_path: Path) -> None:
    """Safety and helpfulness by one label: response_0 and response_1 are text, the preference counts for both."""
    row = {"prompt": "Tea?", "a": "Green.", "b": "Black.", "is_response_0_safe": 1, "is_response_1_safe": 0, "best": 0}
    columns = {"response_0": "a", "response_1": "b", "safer_response_id": "best", "better_response_id": "best"}
    result = corpus(write(tmp_path / "p.jsonl", row), "pku_saferlhf", columns=columns, held_out=1e-9)
    assert result.pairs == [PreferencePair("Tea?", "Green.", "Black.", 0, 0, True, False)]
