"""`write_text` and `write_bytes`: a reader sees the old file or the new one, never a part of one."""

from pathlib import Path

import pytest

from cdpo_lightning.errors import StorageError
from cdpo_lightning.store.files import write_bytes, write_text


def test_new_text_replaces_the_old_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "report" / "table.md"
    write_text(path, "old\n")
    write_text(path, "new ±\n")
    assert path.read_bytes() == "new ±\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_bytes(tmp_path / "written", b"x")
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.md"
    path.write_text("old")
    monkeypatch.setattr(Path, "replace", _no_space)
    with pytest.raises(StorageError, match=r"table.md: cannot be written \(No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_created_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("a file where a folder should be")
    with pytest.raises(StorageError, match="cannot be written"):
        write_text(tmp_path / "report" / "table.md", "new")


def _no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")
