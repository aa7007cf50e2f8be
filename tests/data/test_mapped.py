"""Images that stay in a mapped file."""

import contextlib
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pretended import counts, pretended, waits
from safetensors.numpy import save_file

from sparring import TensorData, UserError, fit
from sparring.data import NPZ, Batches, LabelNoise, MappedArrays, PixelNoise, altered, hold_out, source_of
from sparring.data.mapped import AHEAD

RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 256, (300, 3, 6, 5), dtype=np.uint8), (np.arange(300) % 7).astype(np.uint8)
FORMS = ("folder", "npz", "safetensors")


def written(folder, form, **changed):
    """The arrays in one of the forms that are mapped; images are in the order that `changed` gives, or X."""
    arrays = {"x_train": X, "y_train": Y, "x_test": X[:40], "y_test": Y[:40]} | changed
    path = folder / {"folder": "arrays", "npz": "a.npz", "safetensors": "a.safetensors"}[form]
    if form == "folder":
        path.mkdir()
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
    elif form == "npz":
        np.savez(path, **arrays)
    else:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return MappedArrays(str(path))


def all_of(batches, epoch=0):
    found = list(batches.rest_of_epoch(epoch * len(batches)))
    return torch.cat([b.x for b in found]), torch.cat([b.y for b in found]), torch.cat([b.index for b in found])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", ["first", "last", "grey"])
def test_training_on_a_mapped_set_sees_the_same_as_in_memory(tmp_path, form, layout):
    x = {"first": X, "last": X.transpose(0, 2, 3, 1), "grey": X[:, 0]}[layout]
    mapped, test = written(tmp_path, form, x_train=x, x_test=x[:40]).load()
    np.savez(tmp_path / "whole.npz", x_train=x, y_train=Y, x_test=x[:40], y_test=Y[:40])
    whole, _ = NPZ(str(tmp_path / "whole.npz")).load()
    assert not isinstance(mapped, TensorData) and mapped.shape == whole.shape and mapped.classes == whole.classes
    for epoch in (0, 1):
        ours, theirs = (all_of(Batches(data, 32, views=2, seed=3), epoch) for data in (mapped, whole))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert ours[0].is_contiguous()
    assert torch.equal(test[:].x, whole.x[:40]) and len(test) == 40


@pytest.mark.parametrize("form", FORMS)
def test_rows_parts_and_labels_of_a_mapped_set(tmp_path, form):
    data = written(tmp_path, form).load()[0]
    x = torch.from_numpy(X)
    some = torch.tensor([299, 0, 5, 5])
    assert torch.equal(data[some].x, x[some]) and torch.equal(data[some].y, torch.from_numpy(Y).long()[some])
    assert torch.equal(data[10:20:3].x, x[10:20:3]) and torch.equal(data[-2:].x, x[-2:])
    assert torch.equal(data[data.y == 3].x, x[data.y == 3])
    assert data[:0].x.shape == (0, 3, 6, 5)
    part = data.part(torch.arange(100, 200)).part(torch.tensor([7, 3]))
    assert len(part) == 2 and torch.equal(part[:].x, x[[107, 103]]) and part.images is data.images
    other = data.relabelled(torch.zeros(300, dtype=torch.long))
    assert torch.equal(other[some].x, x[some]) and int(other[some].y.sum()) == 0
    with pytest.raises(IndexError, match="of 300 images"):
        data[torch.tensor([300])]


def test_what_is_held_out_is_in_memory_and_the_rest_stays_in_the_file(tmp_path):
    data = written(tmp_path, "npz").load()[0]
    rest, held = hold_out(data, 0.1)
    assert isinstance(held, TensorData) and len(held) == 30 and len(rest) == 270 and rest.images is data.images
    noisy = altered(rest, (LabelNoise(0.5),), 0)
    assert 0 < int(noisy.wrong.sum()) < 270 and noisy.data.images is data.images
    with pytest.raises(UserError, match="need images in memory, and these stay in files: use ImageFolder or NPZ"):
        altered(rest, (PixelNoise(),), 0)


def test_batches_are_gathered_a_few_ahead_and_no_more(tmp_path):
    data, asked = written(tmp_path, "folder").load()[0], []

    def rows():
        for number in range(20):
            asked.append(number)
            yield torch.arange(number, number + 8)

    read = data.read(rows(), 0)
    assert asked == []
    for number in range(5):
        part, index = next(read)
        assert torch.equal(part.x, torch.from_numpy(X)[index]) and int(index[0]) == number
        assert len(asked) == number + 1 + AHEAD
    read.close()
    assert len(asked) == 5 + AHEAD


@pytest.mark.parametrize("layout", ["first", "last"])
def test_batches_for_a_gpu_are_gathered_into_pinned_memory(tmp_path, monkeypatch, layout):
    x = X if layout == "first" else X.transpose(0, 2, 3, 1)
    data, asked, empty = written(tmp_path, "folder", x_train=x, x_test=x[:40]).load()[0], [], torch.empty

    def recorded(*shape, pin_memory=False, **options):
        asked.append(pin_memory)
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", recorded)
    rows = torch.tensor([5, 3, 5])
    with pretended():
        data = data.to("cuda")
        part, there = next(data.part(torch.arange(100)).read([rows], 0))
        assert part.x.is_cuda and part.y.is_cuda and there.is_cuda
        counts.clear()
        next(data.read([there], 0))
        assert waits() == {"copy between devices": 2}, "rows to the processor and images to the GPU, but no rows back"
    assert asked == [True, True]
    assert torch.equal(part.x.held, torch.from_numpy(X)[rows]) and there.held.tolist() == rows.tolist()


@pytest.mark.slow
def test_a_run_on_a_mapped_set_is_the_run_on_the_same_set_in_memory(tiny, tmp_path):
    x = RNG.integers(0, 256, (400, 8, 8), dtype=np.uint8)
    arrays = {"x_train": x, "y_train": np.arange(400) % 10, "x_test": x[:50], "y_test": np.arange(50) % 10}
    mapped = written(tmp_path, "npz", **arrays)
    recipe = replace(tiny, epochs=1, batch_size=100, held_out=0.1)
    runs = [fit(replace(recipe, data=d), tmp_path / type(d).__name__) for d in (mapped, NPZ(mapped.path))]
    last = [run.weights("last").read_bytes() for run in runs]
    from safetensors.torch import load

    ours, theirs = (load(content) for content in last)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert runs[0].recipe()["data"] == {"$": "MappedArrays", "path": mapped.path}


def test_a_name_stands_for_a_mapped_set(tmp_path):
    assert source_of("mapped:some/where") == MappedArrays("some/where")
    with pytest.raises(UserError, match="mapped needs the name of a data set: write mapped:FOLDER"):
        source_of("mapped")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads its peak from /proc")
def test_only_labels_of_a_set_larger_than_memory_are_read(tmp_path):
    """A file with holes: 4 million images, 12 GB, of which a process with a little memory reads some."""
    count, folder = 4_000_000, tmp_path / "large"
    folder.mkdir()
    for name, size in (("train", count), ("test", 100)):
        np.lib.format.open_memmap(folder / f"x_{name}.npy", "w+", np.uint8, (size, 32, 32, 3)).flush()
        np.save(folder / f"y_{name}.npy", (np.arange(size) % 10).astype(np.uint8))
    code = f"""
import torch
from pathlib import Path
from sparring.data import MappedArrays

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

before = peak()
train, _ = MappedArrays({str(folder)!r}).load()
x = torch.cat([part.x for part, _ in train.read(torch.randint(len(train), (4, 256)).unbind(), 0)])
print(len(train), tuple(x.shape), peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found, _, taken = done.stdout.strip().rpartition(" ")
    assert found == f"{count} (1024, 3, 32, 32)"
    assert int(taken) < 3 * 8 * count, "labels as numbers of 8 bytes, what counts them, and little else"
    blocks = os.stat(folder / "x_train.npy").st_blocks
    assert blocks * 512 < 2**20, "the images are holes"


# -- faults


def compressed(folder):
    np.savez_compressed(folder / "a.npz", x_train=X, y_train=Y, x_test=X, y_test=Y)
    return MappedArrays(str(folder / "a.npz"))


def cut_short(folder):
    source = written(folder, "safetensors")
    with open(source.path, "r+b") as file:
        file.truncate(os.path.getsize(source.path) - 1000)
    return source


def cut_short_npy(folder):
    source = written(folder, "folder")
    with open(f"{source.path}/x_train.npy", "r+b") as file:
        file.truncate(1000)
    return source


def lying_member(folder):
    source = written(folder, "npz", x_train=X)
    with zipfile.ZipFile(source.path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in {"y_train": Y, "x_test": X, "y_test": Y}.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)
        with archive.open("x_train.npy", "w") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 32, 32, 3)}
            )
    return source


def incomplete(folder):
    source = written(folder, "folder")
    os.remove(f"{source.path}/y_test.npy")
    return source


def lacking(folder):
    np.savez(folder / "a.npz", x=X, y=Y)
    return MappedArrays(str(folder / "a.npz"))


FAULTS = [
    (
        compressed,
        r"a\.npz cannot be read \(x_train\.npy is compressed: write it with numpy\.savez, not savez_compressed",
    ),
    (cut_short, r"a\.safetensors cannot be read \(.*\): name a folder of \.npy files, an \.npz file"),
    (cut_short_npy, r"x_train\.npy cannot be read \(.*\): write it with numpy\.save"),
    (lying_member, r"x_train\.npy has another length than its header \(10{12}, 32, 32, 3\) promises"),
    (incomplete, r"y_test\.npy cannot be read \(No such file or directory\)"),
    (lacking, r"it lacks x_train, y_train, x_test, y_test; it holds x, y\): name .* x_train, y_train, x_test, y_test$"),
    (lambda folder: MappedArrays(str(folder / "nowhere")), r"nowhere cannot be read \(No such file"),
    (
        lambda folder: written(folder, "npz", x_train=X / np.float32(255)),
        "images are float32, and mapped images are by",
    ),
    (lambda folder: written(folder, "npz", x_train=np.asfortranarray(X)), "it is in the order of Fortran: write numpy"),
    (
        lambda folder: written(folder, "npz", y_train=Y[:-1]),
        r"there are images \(300, 3, 6, 5\) and 299 labels: wanted",
    ),
    (lambda folder: written(folder, "npz", x_train=X[:0], y_train=Y[:0]), "have no training image|there are images"),
    (lambda folder: written(folder, "npz", x_train=X[:, :2]), r"images are \(1, 2, 6, 5\): wanted are 1 or 3 channels"),
    (
        lambda folder: written(folder, "npz", x_train=X[:, 0, 0]),
        r"train images have shape \(1, 5\): wanted is \[N, chan",
    ),
    (lambda folder: written(folder, "npz", y_train=Y / 2), "labels are float64 of shape .*, wanted are class numbers"),
    (lambda folder: written(folder, "folder", y_train=np.array([{}] * 300)), r"y_train\.npy cannot be read"),
    (lambda folder: written(folder, "npz", y_train=Y * 9), "of these 55 classes have no training image"),
]


@pytest.mark.parametrize(("made", "sentence"), FAULTS, ids=[str(number) for number in range(len(FAULTS))])
def test_a_file_that_cannot_be_mapped_is_refused_in_a_sentence(tmp_path, made, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        made(tmp_path).load()
    assert "\n" not in str(error.value)


def test_more_images_than_there_is_memory_for_are_not_taken_at_once(tmp_path, monkeypatch):
    data = written(tmp_path, "npz").load()[0]
    monkeypatch.setattr("sparring.data.mapped.memory_of_machine", lambda: 1000.0)
    assert len(data[:10]) == 10
    with pytest.raises(
        UserError, match=r"300 images of a file would be .* GiB in memory, more than this machine has: "
    ):
        data[:]


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_damaged_files_are_mapped_or_refused_in_a_sentence(tmp_path, form, fuzz):
    cases, seed = fuzz
    source = written(tmp_path, form)
    whole, rng = bytearray(Path(source.path).read_bytes()), np.random.default_rng(seed)
    for _ in range(cases):
        harmed = whole.copy()
        for place in rng.choice([*range(400), *range(len(whole) - 400, len(whole))], rng.integers(1, 5)):
            harmed[place] = rng.integers(256)
        Path(source.path).write_bytes(harmed[: rng.integers(len(whole)) if rng.random() < 0.2 else None])
        with contextlib.suppress(UserError):  # any other exception is a fault
            MappedArrays(source.path).load()[0][:8]
