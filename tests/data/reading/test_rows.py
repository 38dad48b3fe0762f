"""Rows: every file type, folder and hub name gives the same rows, and every broken one is refused with its location."""

import csv
import json
from pathlib import Path

import datasets
import pytest

from cdpo_lightning.data.reading.rows import is_unpinned, read_rows
from cdpo_lightning.errors import ConfigError, DataError


def write(file: Path, *rows) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


ROWS = [{"prompt": "N/A", "response": "None"}, {"prompt": "7", "response": 'two\nlines, "quoted" \u2028'}]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "folder", "saved", "saved splits"])
def test_every_file_type_gives_the_same_text(tmp_path, kind):
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


def test_utf8_text_is_split_into_lines_only_at_line_feeds(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a\xe2\x80\xa8b"}\r\n\n{"prompt": "c"}')
    assert read_rows(str(tmp_path / "x.jsonl")) == [
        ("x.jsonl:1", {"prompt": "a\u2028b"}),
        ("x.jsonl:3", {"prompt": "c"}),
    ]


def test_a_limit_keeps_the_first_rows(tmp_path):
    file = write(tmp_path / "x.jsonl", *[{"prompt": prompt} for prompt in "abc"])
    assert [row.columns["prompt"] for row in read_rows(file, limit=2)] == ["a", "b"]
    with pytest.raises(ConfigError, match="limit"):
        read_rows(file, limit=0)


@pytest.mark.parametrize(
    ("path", "name", "options"),
    [
        ("o/n", "o/n", {"split": "train", "revision": "r"}),
        ("o/n@v0", "o/n", {"split": "train", "revision": "v0"}),
        ("o/n:alpaca-7b@v0%30k_test", "o/n", {"name": "alpaca-7b", "split": "30k_test", "revision": "v0"}),
        ("o/n:harmless-base/%test", "o/n", {"data_dir": "harmless-base", "split": "test", "revision": "r"}),
    ],
)
def test_a_hub_name_may_contain_part_revision_and_split(monkeypatch, path, name, options):
    calls = []

    def load(path, **kwargs):
        calls.append((path, kwargs))
        return datasets.Dataset.from_list([{"prompt": "Tea?"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    [(location, _)] = read_rows(path, split="train", revision="r")
    assert calls == [(name, options)]
    assert location == f"{name}[{options['split']}]:1"


def test_a_hub_name_without_a_revision_is_unpinned(tmp_path):
    (tmp_path / "here.jsonl").touch()
    assert is_unpinned("o/n", None)
    assert is_unpinned("o/n%test", None)
    assert not any([is_unpinned("o/n@v0", None), is_unpinned("o/n", "v0"), is_unpinned("", None)])
    assert not is_unpinned(str(tmp_path / "here.jsonl"), None)


def test_a_hub_name_may_contain_a_version_number(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **_: datasets.Dataset.from_list([{"prompt": name}]))
    assert read_rows("teknium/OpenHermes-2.5")[0][1] == {"prompt": "teknium/OpenHermes-2.5"}


# Errors


@pytest.mark.parametrize("path", ["gone.jsonl", "./gone", "/gone", "~/gone", "a/b/gone", "", "data/gone.parquet", "/a@b"])
def test_a_missing_file_is_not_requested_from_the_hub(monkeypatch, path):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("requested from the hub"))
    with pytest.raises(DataError, match="missing file"):
        read_rows(path)


@pytest.mark.parametrize("path", ["o/n@", "o/n@v0@v1", "o/n%a:b"])
def test_a_malformed_hub_name_is_refused(path):
    with pytest.raises(DataError, match="not a hub name such as"):
        read_rows(path)


@pytest.mark.parametrize("error", [ConnectionError("no network"), ValueError("Unknown split"), FileNotFoundError("no")])
def test_an_error_of_the_hub_is_refused(monkeypatch, error):
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
    "no rows": ("x.jsonl", b"\n", "has no rows"),
    "header only": ("x.csv", b"prompt\n", "has no rows"),
    "cells too many": ("x.csv", b"prompt\na\nb,c\n", r"x\.csv:3: more or fewer cells"),
    "cells too few": ("x.csv", b"prompt,response\na\n", r"x\.csv:2: more or fewer cells"),
    "not CSV": ("x.csv", b'prompt\n"a"b\n', r"x\.csv:2: not CSV"),
    "not parquet": ("x.parquet", b"PAR1 and no more", "not parquet"),
    "unknown type": ("x.doc", b"a", r"file type '\.doc'"),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file_is_refused_with_its_location(tmp_path, name):
    file, contents, expected = BROKEN_FILES[name]
    (tmp_path / file).write_bytes(contents)
    with pytest.raises(DataError, match=expected):
        read_rows(str(tmp_path / file))


def test_a_file_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    file = write(tmp_path / "x.jsonl", {})

    def locked(_):
        raise PermissionError("locked")

    monkeypatch.setattr(Path, "read_bytes", locked)
    with pytest.raises(DataError, match=r"x\.jsonl: cannot be read \(locked\)"):
        read_rows(file)


def test_a_folder_without_files_of_the_split_is_refused(tmp_path):
    write(tmp_path / "train-00000.jsonl", {"prompt": "a"})
    write(tmp_path / "extra.jsonl", {"prompt": "b"})
    assert len(read_rows(str(tmp_path))) == 1
    with pytest.raises(DataError, match="no file for the split 'test'"):
        read_rows(str(tmp_path), split="test")


def test_a_folder_without_split_names_is_read_whole(tmp_path):
    write(tmp_path / "one.jsonl", {"prompt": "a"})
    write(tmp_path / "two.jsonl", {"prompt": "b"})
    assert [location for location, _ in read_rows(str(tmp_path), split="test")] == ["one.jsonl:1", "two.jsonl:1"]


def test_a_saved_data_set_without_the_split_is_refused(tmp_path):
    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(str(tmp_path))
    with pytest.raises(DataError, match="no split 'test', it has train"):
        read_rows(str(tmp_path), split="test")


def test_an_incomplete_saved_data_set_is_refused(tmp_path):
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match="not a whole save_to_disk folder"):
        read_rows(str(tmp_path))
