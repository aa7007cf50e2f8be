"""Data sets made of others, and their names on the command line."""

import io
import tarfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparring import UserError
from sparring.data import (
    NPZ,
    STL10,
    ClassSubset,
    Digits,
    ImageFolder,
    InvertedImages,
    Resized,
    Rotated,
    load_test,
    source_of,
)


def own(tmp_path, shape=(12, 6, 6, 3), floats=False):
    rng = np.random.default_rng(0)
    x = rng.random(shape) if floats else rng.integers(0, 256, shape).astype(np.uint8)
    path = tmp_path / "own+rotated-or-not.npz"  # a path may have a plus in it
    np.savez(path, x_train=x, y_train=np.arange(12) % 3, x_test=x[:6], y_test=np.arange(6) % 3)
    return NPZ(str(path)), torch.from_numpy(x).permute(0, 3, 1, 2)


def test_images_are_stretched_and_keep_their_type(tmp_path):
    train, test = Resized(Digits(), 3, 28, 28).load()
    small, _ = Digits().load()
    assert train.shape == test.shape == (3, 28, 28) and train.x.dtype == torch.uint8
    assert torch.equal(train.y, small.y) and train.classes == small.classes
    assert torch.equal(train.x[:, 0], train.x[:, 2])
    wide = F.interpolate(small.x[:5].float(), size=(28, 28), mode="bilinear", antialias=True)
    assert float((train.x[:5, :1].float() - wide).abs().max()) <= 0.5
    source, x = own(tmp_path)
    grey = Resized(source, 1, 6, 6).load()[0]
    luma = (x.float() * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    assert float((grey.x.float() - luma).abs().max()) <= 0.51
    assert torch.equal(Resized(source, 3, 6, 6).load()[1].x, x[:6])
    source, x = own(tmp_path, floats=True)
    half = Resized(source, 3, 3, 3).load()[0].x
    assert half.dtype == torch.float32 and float(half.min()) >= 0 and float(half.max()) <= 1
    with pytest.raises(UserError, match="1 or 3 channels and a size, not 2x8x8"):
        Resized(Digits(), 2, 8, 8)


def test_images_are_turned_and_inverted(tmp_path):
    source, x = own(tmp_path)
    turned = Rotated(source).load()[0].x
    assert torch.equal(turned[:, :, 0, 0], x[:, :, 0, 5])  # what was on the right is on top
    assert torch.equal(Rotated(Rotated(source), 3).load()[1].x, x[:6])
    assert torch.equal(InvertedImages(source).load()[0].x, 255 - x)
    source, x = own(tmp_path, floats=True)
    assert torch.allclose(InvertedImages(source).load()[0].x, 1 - x.float())


def test_classes_are_chosen_and_numbered_anew(tmp_path):
    source, x = own(tmp_path)
    train, test = ClassSubset(source, (2, 0)).load()
    assert train.classes == ("2", "0") and train.y.tolist() == [1, 0] * 4
    assert torch.equal(train.x, x[torch.tensor([0, 2, 3, 5, 6, 8, 9, 11])]) and len(test) == 4
    for chosen in ((1,), (1, 1), ()):
        with pytest.raises(UserError, match="at least two classes are chosen, none twice"):
            ClassSubset(source, chosen)
    with pytest.raises(UserError, match=r"classes \(0, 3\) are chosen of those numbered 0 to 2"):
        ClassSubset(source, (0, 3)).load()


def test_images_are_stretched_or_their_centre_is_cut_out(tmp_path):
    x = np.zeros((4, 8, 12), np.uint8)
    x[:, :, 2:10] = 200 + np.arange(4)[:, None, None]  # the central square, between black borders
    np.savez(tmp_path / "wide.npz", x_train=x, y_train=np.arange(4) % 2, x_test=x, y_test=np.arange(4) % 2)
    source = NPZ(str(tmp_path / "wide.npz"))
    stretched, cut = (Resized(source, 3, 4, 4, fit).load()[0].x for fit in ("stretch", "crop"))
    assert stretched.shape == cut.shape == (4, 3, 4, 4)
    assert int(cut.min()) == 200
    assert int(stretched.min()) < 150
    assert Resized(source, 1, 8, 6, "crop").load()[0].x.shape == (4, 1, 8, 6)
    with pytest.raises(UserError, match="fit = 'pad' is not one of stretch, crop"):
        Resized(source, 3, 4, 4, "pad")


def test_names_say_what_is_done(tmp_path):
    assert source_of("folder:a+size=64") == ImageFolder("a", 64)
    assert source_of("digits+size=16") == Resized(Digits(), None, 16, 16)
    assert source_of("digits") == Digits()
    assert source_of("digits+rotated+inverted") == InvertedImages(Rotated(Digits()))
    assert source_of("digits+classes=0-2,7") == ClassSubset(Digits(), (0, 1, 2, 7))
    assert source_of("folder:a+b+inverted") == InvertedImages(ImageFolder("a+b"))
    source, x = own(tmp_path)
    named = f"npz:{source.path}"
    assert source_of(named) == source
    assert torch.equal(load_test(f"{named}+inverted").x, 255 - x[:6]) and torch.equal(load_test(named).x, x[:6])
    assert len(load_test("digits+classes=3,4")) < 100
    for name, message in (
        ("digit", "no data called 'digit': did you mean digits"),
        ("mine.npz", r"no data called 'mine\.npz': did you mean npz:mine\.npz\?"),
        (str(tmp_path), f"did you mean folder:{tmp_path}"),
        ("digits+turned", r"'digits\+turned': a \+ is followed by rotated, inverted"),
        ("digits+classes=4-0", r"classes are numbers, as \+classes=0-4"),
        ("digits+classes=1-2-9", r"classes are numbers, as \+classes=0-4"),
        ("digits+size=big", r"a size is a number of pixels, as \+size=224, not 'big'"),
        ("digits+rotated=2", r"'digits\+rotated=2': a \+ is followed by"),
        ("digits+classes=a-b", r"classes are numbers, as \+classes=0-4"),
        ("npz:", "npz needs the name of a data set: write npz:FILE"),
        ("npz:gone.npz", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            source_of(name).load()


def write_stl(folder, n=4, short=0):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n, 3, 96, 96)).astype(np.uint8)  # channel, row, column
    y = (np.arange(n) % 10 + 1).astype(np.uint8)
    names = " ".join(f"class{i}" for i in range(10)).replace(" ", "\n")
    members = {"class_names.txt": names.encode()}
    for part in ("train", "test"):
        members[f"{part}_X.bin"] = x.transpose(0, 1, 3, 2).tobytes()[: x.size - short]
        members[f"{part}_y.bin"] = y.tobytes()
    with tarfile.open(folder / "stl10_binary.tar.gz", "w:gz") as tar:
        for name, raw in members.items():
            info = tarfile.TarInfo(f"stl10_binary/{name}")
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return x, y


def test_stl10_is_read_column_by_column_and_its_labels_count_from_1(tmp_path):
    x, y = write_stl(tmp_path)
    train, test = STL10(str(tmp_path)).load()
    assert np.array_equal(train.x.numpy(), x) and np.array_equal(test.y.numpy(), y - 1)
    assert train.classes[3] == "class3" and len(train.classes) == 10
    with tarfile.open(tmp_path / "stl10_binary.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    (tmp_path / "stl10_binary.tar.gz").unlink()
    assert np.array_equal(STL10(str(tmp_path)).load()[1].x.numpy(), x)
    assert source_of(f"stl10:{tmp_path}") == STL10(str(tmp_path))


def test_a_broken_stl10_is_named(tmp_path):
    write_stl(tmp_path, short=7)
    with pytest.raises(UserError, match=r"stl10_binary\.tar\.gz.*train_X\.bin has 110585 bytes"):
        STL10(str(tmp_path)).load()
