"""Rows of a data set, each with its location, from a local file, a folder or the Hugging Face hub."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from cdpo_lightning.data.reading.files import Rows, SourceRow, expected_types, is_data_file, number_rows, read_file
from cdpo_lightning.data.reading.unusable import UnusableRow, UnusableRows
from cdpo_lightning.errors import ConfigError, DataError

__all__ = ["SourceRow", "is_unpinned", "read_rows"]


def read_rows(
    path: str, split: str = "train", revision: str | None = None, limit: int | None = None, unusable: UnusableRows | None = None
) -> list[SourceRow]:
    """Return the first `limit` rows (None: all) of a data set; a location is `file:line` or `name[split]:row`.

    `path` is a file, a folder of files, a folder written by `save_to_disk`, or a hub name, tried in that order. The split
    does not apply to a file. Of a folder, the files named after the split are read, or all files if no file name is that
    of a split; a folder without files of its own, such as a clone of a hub data set, is read from its folder `data`, with the
    folders in it. A hub name is `owner/name`, optionally followed by `:part` (a configuration, or a folder if it ends with a
    slash), `@revision` (a tag or commit) and `%split`; these two take precedence over the arguments.

    Args:
        unusable: counts the rows that cannot be read, or raises the first, as its policy says; None: the first is raised.

    Raises:
        DataError: the path does not exist, cannot be read, or has no rows.
        ConfigError: the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit: got {limit}, expected at least 1, or null for every row")
    unusable = unusable or UnusableRows()
    rows = list(islice(_readable(_find_rows(path, split, revision), unusable), limit))
    if not rows:
        reason = f"; {unusable.summary()}" if unusable.counts else ""
        raise DataError(f"{path}: has no rows, expected at least one; check the file or the split ({split}){reason}")
    return rows


def _readable(rows: Rows, unusable: UnusableRows) -> Iterator[SourceRow]:
    for row in rows:
        if isinstance(row, UnusableRow):
            unusable.add(row)
        else:
            yield row


def _find_rows(path: str, split: str, revision: str | None) -> Rows:
    local = Path(path).expanduser()
    if path and local.is_dir():
        return _read_saved(local, split) if _is_saved(local) else _read_folder(local, split)
    if path and local.exists():
        return read_file(local)
    if _looks_local(re.split("[:@%]", path)[0]):
        raise DataError(f"{path!r}: missing file, expected {expected_types()}, a folder of them or a hub name")
    return _read_hub(*_hub_address(path, split, revision))


_HUB = re.compile(r"(?P<name>[^:@%]+)(:(?P<part>[^:@%]+))?(@(?P<revision>[^:@%]+))?(%(?P<split>[^:@%]+))?")


def _hub_address(path: str, split: str, revision: str | None) -> tuple[str, str | None, str, str | None]:
    """Return (name, part, split, revision) of a hub name."""
    match = _HUB.fullmatch(path)
    if match is None:
        raise DataError(f"{path!r}: no file, and not a hub name such as owner/name:part@revision%split; correct it")
    return match["name"], match["part"], match["split"] or split, match["revision"] or revision


def is_unpinned(path: str, revision: str | None) -> bool:
    """Return whether the path is a hub name without a revision, so that the data may change between runs."""
    return bool(path) and not Path(path).expanduser().exists() and "@" not in path and revision is None


def _looks_local(path: str) -> bool:
    """Return whether a path that does not exist was meant as a file: a mistyped file name must not start a download."""
    suffix = Path(path).suffix  # of the hub name "OpenHermes-2.5" it is ".5", which is no file type
    return path[:1] in {"", ".", "/", "~"} or path.count("/") > 1 or bool(re.match(r"\.[A-Za-z]", suffix))


_SPLIT_NAME = re.compile(r"(?:.*/)?(train|training|test|val|valid|validation|dev|eval)([-_./]|$)")


def _read_folder(folder: Path, split: str) -> Rows:
    files = _folder_files(folder)
    if any(_SPLIT_NAME.match(name) for name in files):  # then the other files are other splits, which must not be mixed in
        files = {name: file for name, file in files.items() if _is_of_split(name, split)}
    if not files:
        parts = ", ".join(sorted(part.name for part in folder.iterdir() if part.is_dir() and not part.name.startswith(".")))
        hint = f", or one of its folders {parts}" if parts else ""
        raise DataError(f"{folder}: no file for the split {split!r}, expected one such as {split}.jsonl; name a file{hint}")
    for name, file in files.items():
        yield from read_file(file, name)


def _folder_files(folder: Path) -> dict[str, Path]:
    """Return the data files by their path in the folder; if it has none, those of its folder `data` and of the folders in that."""
    own = {file.name: file for file in sorted(folder.iterdir()) if file.is_file() and is_data_file(file)}
    inside = sorted(file for file in (folder / "data").rglob("*") if file.is_file() and is_data_file(file))
    return own or {file.relative_to(folder / "data").as_posix(): file for file in inside}


def _is_of_split(name: str, split: str) -> bool:
    return bool(re.search(rf"(^|/){re.escape(split)}([-_./]|$)", name))


def _is_saved(folder: Path) -> bool:
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def _read_saved(folder: Path, split: str) -> Iterator[SourceRow]:
    import datasets  # imported here because it is slow to import and few runs need it

    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: not a whole save_to_disk folder ({error}); save the data set again") from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise DataError(f"{folder}: no split {split!r}, it has {', '.join(saved)}; name one of these")
        saved = saved[split]
    return number_rows(f"{folder.name}[{split}]", saved)


def _read_hub(name: str, part: str | None, split: str, revision: str | None) -> Iterator[SourceRow]:
    import datasets  # imported here because it is slow to import and few runs need it

    key = "data_dir" if part and part.endswith("/") else "name"
    options = {key: part.rstrip("/")} if part else {}
    try:
        rows = datasets.load_dataset(name, split=split, revision=revision, **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{name}: no such file, and not on the hub ({reason}); check name and split") from error
    return number_rows(f"{name}[{split}]", rows)
