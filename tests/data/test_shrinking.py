"""Pictures that are made small once."""

import os

import numpy as np
import pytest
from PIL import Image

from sparring import UserError
from sparring.cli import run
from sparring.data import ImageStream, shrink_pictures

CLASSES = ("ant", "bee")
SIZES = ((300, 200), (200, 300), (120, 90), (64, 400))


@pytest.fixture
def large(tmp_path):
    """Smooth pictures of several sizes and formats, in folders as of ImageNet."""
    for part in ("train", "val"):
        for number, name in enumerate(CLASSES):
            folder = tmp_path / "large" / part / name
            folder.mkdir(parents=True)
            for i, (width, height) in enumerate(SIZES):
                waves = [127 + 100 * np.sin(np.linspace(0, 4 + c + number, width)) for c in range(3)]
                image = Image.fromarray(np.stack([np.tile(w, (height, 1)) for w in waves], 2).astype(np.uint8))
                image.save(folder / f"{i}.{'png' if i == 1 else 'jpg'}", quality=95)
    return tmp_path / "large"


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_shorter_side_is_as_asked_and_the_ratio_and_the_picture_stay(large, tmp_path):
    found = shrink_pictures(large, tmp_path / "small", 100)
    assert found == (16, 0, [])
    assert files(tmp_path / "small") == sorted(name.replace("1.png", "1.png.jpg") for name in files(large))
    sizes = {}
    for path in (tmp_path / "small").rglob("*.jpg"):
        with Image.open(path) as image:
            assert image.format == "JPEG"
            sizes[path.name] = image.size
    assert sizes == {"0.jpg": (150, 100), "1.png.jpg": (100, 150), "2.jpg": (120, 90), "3.jpg": (64, 400)}
    name = "train/bee/0.jpg"
    with Image.open(large / name) as before, Image.open(tmp_path / "small" / name) as after:
        wanted = np.asarray(before.resize((150, 100), Image.Resampling.LANCZOS)).astype(int)
        assert np.abs(np.asarray(after).astype(int) - wanted).max() <= 4
    kept = "val/ant/2.jpg"
    assert (large / kept).read_bytes() == (tmp_path / "small" / kept).read_bytes(), "small JPEG files are copied"


def test_a_small_folder_is_a_data_set_of_the_same_classes(large, tmp_path):
    shrink_pictures(large, tmp_path / "small", 100)
    train, test = ImageStream(str(tmp_path / "small"), size=32).load()
    before, _ = ImageStream(str(large), size=32).load()
    assert train.classes == CLASSES and len(train) == len(test) == 8
    assert np.abs(train[:].x.numpy().astype(int) - before[:].x.numpy().astype(int)).mean() < 2


def test_a_second_call_writes_what_is_missing_and_nothing_else(large, tmp_path):
    small = tmp_path / "small"
    shrink_pictures(large, small, 100)
    lost, kept = small / "train/ant/0.jpg", small / "train/ant/3.jpg"
    content = lost.read_bytes()
    lost.unlink()
    (small / "train/ant/.0.jpg.writing").write_bytes(b"left by a process that was killed")
    kept.write_bytes(b"mine")
    assert shrink_pictures(large, small, 100, workers=1) == (1, 15, [])
    assert lost.read_bytes() == content and kept.read_bytes() == b"mine"
    assert not (small / "train/ant/.0.jpg.writing").exists()


def test_pictures_of_another_side_are_not_kept(large, tmp_path):
    shrink_pictures(large, tmp_path / "small", 100)
    for side in (60, 150):
        with pytest.raises(UserError, match=rf"0.jpg has a shorter side of 100 pixels, not {side}, and was made with"):
            shrink_pictures(large, tmp_path / "small", side)
    assert shrink_pictures(large, tmp_path / "small", 100) == (0, 16, [])


def test_class_folders_may_be_links_and_circles_end(large, tmp_path):
    (large / "train" / "cat").symlink_to(large / "val" / "ant")
    (large / "train" / "ant" / "up").symlink_to(large)
    (large / "train" / "ant" / ".hidden.jpg").write_bytes(b"nothing")
    found = shrink_pictures(large / "train", tmp_path / "small", 100)
    assert found.written == 12 + 8 and not found.unreadable
    assert (tmp_path / "small" / "cat" / "0.jpg").exists()


def test_what_is_no_picture_is_named_and_the_exit_status_says_so(large, tmp_path, capsys):
    (large / "train" / "bee" / "notes.txt").write_text("words")
    whole = (large / "train" / "bee" / "2.jpg").read_bytes()
    (large / "train" / "bee" / "2.jpg").write_bytes(whole[: len(whole) // 2])
    assert run(["data", "shrink", str(large), "--to", "100"]) == 1
    out, err = capsys.readouterr()
    assert f"{large}-100: 15 written, 0 there before, 2 that cannot be read" in out
    assert "notes.txt is no picture that can be read" in err and "2.jpg is no picture" in err
    assert not (tmp_path / "large-100" / "train/bee/notes.txt.jpg").exists()
    (large / "train" / "bee" / "notes.txt").unlink()
    (large / "train" / "bee" / "2.jpg").write_bytes(whole)
    assert run(["data", "shrink", str(large), "--to", "100", "--out", f"{large}-100"]) == 0
    assert "1 written, 15 there before, 0 that cannot be read" in capsys.readouterr().out


def test_a_full_disk_stops_instead_of_being_taken_for_a_bad_picture(large, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, os.strerror(28), str(path))

    monkeypatch.setattr("sparring.data.shrinking.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        shrink_pictures(large, tmp_path / "small", 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": 0}, "side = 0 is no whole number from 1 on"),
        ({"workers": 0}, "workers = 0 is no whole number from 1 on"),
        ({"out": "large/small"}, "cannot be written to .*large/small, which lies in .*large: name another folder"),
        ({"out": "large"}, "which lies in"),
        ({"folder": "nowhere"}, "there are no files in .*nowhere: name a folder of pictures"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused(large, tmp_path, change, message):
    given = {"folder": "large", "out": "small", "side": 100, "workers": None} | change
    with pytest.raises(UserError, match=message):
        shrink_pictures(tmp_path / given["folder"], tmp_path / given["out"], given["side"], given["workers"])
    assert not (tmp_path / "small").exists()


def test_two_pictures_with_one_name_are_refused(large, tmp_path):
    folder = large / "train" / "ant"
    (folder / "1.png.jpg").write_bytes((folder / "0.jpg").read_bytes())
    with pytest.raises(UserError, match=r"1\.png and .*1\.png\.jpg would both become .*: rename one of them"):
        shrink_pictures(large, tmp_path / "small", 100)


def test_the_command_says_what_it_needs(capsys):
    assert run(["data"]) == 2
    assert "shrink FOLDER is missing" in capsys.readouterr().err
    assert run(["data", "grow", "x"]) == 2
    assert "write sparring data shrink FOLDER --to PIXELS" in capsys.readouterr().err
