"""A file is replaced once its content is on the disk, and its name is on the disk before anything else is done."""

import os
import stat

import pytest

from sparring.core.writing import write_bytes


@pytest.mark.parametrize("shared", [False, True])
def test_content_is_forced_to_the_disk_before_the_name_and_the_name_at_the_end(tmp_path, monkeypatch, shared):
    path, forced = tmp_path / "file", []
    path.write_bytes(b"before")

    def noted(handle):
        what = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        forced.append((what, path.read_bytes()))

    monkeypatch.setattr("os.fsync", noted)
    write_bytes(path, b"after", shared)
    assert forced == [("file", b"before"), ("folder", b"after")]
    assert [*tmp_path.iterdir()] == [path]
