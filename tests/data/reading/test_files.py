"""Files as users have them: gzipped, JSON lines named .json, an object around the rows, prompts as text, clones from the hub."""

import csv
import gzip
import io
import json
from pathlib import Path

import datasets
import pytest

from cdpo_lightning.data.reading.rows import read_rows
from cdpo_lightning.data.reading.unusable import UnusableRows
from cdpo_lightning.errors import DataError

ROWS = [{"prompt": "N/A", "response": "None"}, {"prompt": "7", "response": 'two\nlines, "quoted" \u2028'}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def written_csv() -> str:
    target = io.StringIO(newline="")
    writer = csv.DictWriter(target, ["prompt", "response"])
    writer.writeheader()
    writer.writerows(ROWS)
    return target.getvalue()


FORMS = {
    "JSON lines named .json": ("x.json", LINES),
    "an object around the rows": ("x.json", json.dumps({"version": "1.0", "data": ROWS})),
    "an indented object around the rows": ("x.json", json.dumps({"data": ROWS}, indent=2)),
    "indented JSON": ("x.json", json.dumps(ROWS, indent=2)),
    "gzipped JSON lines": ("x.jsonl.gz", LINES),
    "gzipped JSON": ("x.json.gz", json.dumps(ROWS)),
    "gzipped JSON lines named .json": ("x.json.gz", LINES),
    "gzipped CSV": ("x.csv.gz", written_csv()),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    name, text = FORMS[form]
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert [row.columns for row in read_rows(str(tmp_path / name))] == ROWS


def test_the_locations_of_json_lines_named_json_are_lines(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(LINES)
    assert [row.location for row in read_rows(str(tmp_path / "x.json"))] == ["x.json:1", "x.json:2"]


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("Tea?\r\n\n  Milk, \u2028please?\n".encode())
    assert read_rows(str(tmp_path / "x.txt")) == [
        ("x.txt:1", {"prompt": "Tea?"}),
        ("x.txt:3", {"prompt": "  Milk, \u2028please?"}),
    ]


# Folders


def hub_clone(folder: Path, *files: str) -> str:
    """Write files as a clone of a hub data set has them; every row names its file."""
    for name in files:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            datasets.Dataset.from_list([{"prompt": name}]).to_parquet(file)
        else:
            text = (json.dumps({"prompt": name}) + "\n").encode()
            file.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    for name in ("README.md", "LICENSE.txt", ".gitattributes", "dataset_infos.json"):
        (folder / name).write_text("{}")
    return str(folder)


@pytest.mark.parametrize(
    ("files", "read"),
    [
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"], [0, 1]),
        (["data/Alpaca-7B/train.jsonl", "data/Alpaca-7B/test.jsonl", "data/Alpaca3-8B/train.jsonl"], [0, 2]),  # PKU-SafeRLHF
        (["data/train/0.jsonl", "data/test/0.jsonl"], [0]),
        (["train.jsonl.gz", "test.jsonl.gz"], [0]),
        (["train.jsonl", "data/train.jsonl"], [0]),
    ],
    ids=["parquet", "PKU-SafeRLHF", "a folder a split", "gzipped, as HelpSteer3", "files and data"],
)
def test_a_clone_of_a_hub_data_set_is_read(tmp_path: Path, files: list[str], read: list[int]) -> None:
    rows = read_rows(hub_clone(tmp_path, *files))
    assert [row.columns["prompt"] for row in rows] == [files[i] for i in read]
    assert len({row.location for row in rows}) == len(read)


def test_the_folders_of_a_clone_without_data_are_named(tmp_path: Path) -> None:
    """As in HelpSteer3, whose parts have different columns."""
    clone = hub_clone(tmp_path, "preference/train.jsonl.gz", "feedback/train.jsonl.gz")
    with pytest.raises(DataError, match="one of its folders feedback, preference"):
        read_rows(clone)
    assert len(read_rows(f"{clone}/preference")) == 1


@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet", "train.csv"])
def test_a_pointer_of_git_lfs_is_no_data(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(DataError, match="git lfs pull"):
        read_rows(str(tmp_path / name))


# Rows that cannot be read


@pytest.mark.parametrize(
    ("name", "contents", "reasons"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \n["a"]\n{"a": "\xff"}\n{"a": 2}', {"not_json": 1, "not_object": 1, "not_utf8": 1}),
        ("x.json", b'[{"a": 1}, 3, {"a": 2}]', {"not_object": 1}),
        ("x.json", b'{"a": \n{"a": 1}\n{"a": 2}\n', {"not_json": 1}),
        ("x.csv", b'a,b\n1,2\n1\n"a"b,1\n1,2,3\n\xff,1\n2,2\n', {"cells": 2, "not_csv": 1, "not_utf8": 1}),
        ("x.txt", b"one\n\xff\ntwo\n", {"not_utf8": 1}),
    ],
)
def test_the_rows_around_unreadable_ones_are_read(tmp_path: Path, name: str, contents: bytes, reasons: dict[str, int]) -> None:
    (tmp_path / name).write_bytes(contents)
    unusable = UnusableRows("drop")
    assert len(read_rows(str(tmp_path / name), unusable=unusable)) == 2
    assert unusable.counts == reasons
    with pytest.raises(DataError, match=rf"{name}:\d"):
        read_rows(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "contents", "expected"),
    [
        ("x.jsonl.gz", gzip.compress(LINES.encode())[:-12], "cannot be read"),
        ("x.jsonl.gz", LINES.encode(), "cannot be read"),
        ("x.parquet.gz", b"", "file type"),
        ("x.json", b'{"rows": []}', "expected an array of objects"),
        ("x.json", b'{"a": ', "not JSON"),
        ("x.json", b'[{"a": "\xff"}]', "not UTF-8"),
        ("x.csv", b'"a"b\n1\n', "header"),
    ],
)
def test_a_damaged_file_is_refused_whatever_the_policy(tmp_path: Path, name: str, contents: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(DataError, match=rf"x\..*{expected}"):
        read_rows(str(tmp_path / name), unusable=UnusableRows("drop"))
