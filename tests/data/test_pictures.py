"""Pictures that stay in their files until they are asked for."""

import gc
import io
import multiprocessing
import os
import signal
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from forked import ended, started
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from safetensors.torch import load_file

from sparring import PGD, Build, CrossEntropy, Linf, Method, TensorData, UserError, evaluate_run, fit
from sparring.data import (
    Batches,
    ClassSubset,
    Flip,
    ImageFolder,
    ImageStream,
    InvertedImages,
    Resized,
    Subset,
    hold_out,
)
from sparring.data.looks import _CENTRES, RandomWindow, _window
from sparring.data.shrinking import _small
from sparring.models import Normalize, small_cnn
from sparring.recipes.small import quickstart
from sparring.records import RunFolder
from sparring.training import Interrupted

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def pictures(tmp_path):
    """Three classes of grey value: 12 pictures each to train on, 4 to test on, JPEG and PNG of several sizes."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for number, name in enumerate(CLASSES):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                shape = (20 + 3 * (i % 4), 24, 3)
                image = np.clip(70 * number + 40 + rng.integers(-25, 25, shape), 0, 255).astype(np.uint8)
                ending = ("png", "jpg", "jpeg", "JPG")[i % 4]
                Image.fromarray(image).save(tmp_path / part / name / f"{i:02}.{ending}")
    return tmp_path


def batches(source, size=6, seed=0, workers=0, views=1, augment=()):
    train = replace(source, workers=workers).load()[0]
    return Batches(train, size, augment, seed, views)


def all_of(epoch):
    epoch = list(epoch)
    return torch.cat([b.x for b in epoch]), torch.cat([b.y for b in epoch]), torch.cat([b.index for b in epoch])


def test_a_stream_is_a_training_set_of_bytes_in_mixed_order(pictures):
    train, test = ImageStream(str(pictures), size=16).load()
    assert (len(train), len(test), train.shape, train.classes) == (36, 12, (3, 16, 16), CLASSES)
    assert len(set(test.y[:6].tolist())) == 3, "the first so many are of all classes"
    data = train[:]
    assert isinstance(data, TensorData) and data.x.dtype == torch.uint8 and data.x.shape == (36, 3, 16, 16)
    brightness = data.x.float().mean((1, 2, 3))
    assert torch.equal((brightness / 70 - 0.5).round().long().clamp(0, 2), data.y), "labels go with their pictures"
    rows = torch.tensor([5, 3])
    assert torch.equal(train[rows].x, data.x[rows])
    assert torch.equal(train.part(rows)[:].x, data.x[rows])
    again = ImageStream(str(pictures), size=16).load()[0]
    assert torch.equal(again[:].x, data.x)


def test_windows_depend_on_seed_epoch_and_picture_and_not_on_workers(pictures):
    source = ImageStream(str(pictures), size=16)
    alone = all_of(batches(source).rest_of_epoch(0))
    assert alone[0].dtype == torch.float32 and alone[0].max() <= 1 and len(alone[0]) == 36
    assert sorted(alone[2].tolist()) == list(range(36))
    helped = all_of(batches(source, workers=2).rest_of_epoch(0))
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))
    later = all_of(batches(source).rest_of_epoch(4))
    assert torch.equal(later[0], alone[0][24:]), "an epoch can be entered anywhere"
    other = all_of(batches(source).rest_of_epoch(6))
    assert not torch.equal(other[2], alone[2])
    back = torch.argsort(alone[2]), torch.argsort(other[2])
    assert not torch.equal(alone[0][back[0]], other[0][back[1]]), "another epoch cuts out other windows"
    seeded = all_of(batches(source, seed=1).rest_of_epoch(0))
    assert not torch.equal(seeded[2], alone[2])


def test_several_views_are_several_windows_of_a_picture(pictures):
    batch = next(batches(ImageStream(str(pictures), size=16), views=2).rest_of_epoch(0))
    assert torch.equal(batch.index[:6], batch.index[6:])
    assert not torch.equal(batch.x[:6], batch.x[6:])


@dataclass(frozen=True)
class ProcessNumber:
    """A cut whose images are the number of the process that makes them."""

    size: int = 2

    def centre(self, path):
        raise AssertionError("nothing is evaluated here")

    def chance(self, path, rng):
        return np.array([os.getpid() >> 8 * byte & 255 for byte in range(4)] * 3, np.uint8).reshape(3, 2, 2)


def makers(read):
    """Numbers of the processes that have made the images, and the rows of the batches."""
    read = list(read)
    images = torch.cat([part.x for part, _ in read])[:, 0].flatten(1).long()
    return set((images * torch.tensor([1, 256, 256**2, 256**3])).sum(1).tolist()), [rows for _, rows in read]


def test_workers_stay_from_epoch_to_epoch_and_end_with_their_pictures(pictures):
    train = replace(ImageStream(str(pictures), size=16).load()[0], look=ProcessNumber(), workers=2)
    epochs = [list(torch.randperm(36).split(4)) for _ in range(3)]
    first, rows = makers(train.read(epochs[0], 0))
    assert len(first) == 2 and os.getpid() not in first
    assert all(torch.equal(a, b) for a, b in zip(rows, epochs[0], strict=True))
    early = train.read(epochs[1], 1)
    next(early)
    other, rows = makers(train.read(epochs[2], 2))
    assert not first & other, "a second reader at the same time has workers of its own"
    assert all(torch.equal(a, b) for a, b in zip(rows, epochs[2], strict=True))
    early.close()
    again, rows = makers(train.read(epochs[2], 2))
    assert again == first, "those of a reader that stopped early serve the next"
    assert all(torch.equal(a, b) for a, b in zip(rows, epochs[2], strict=True)), "and it sees its own batches only"
    del train, early
    gc.collect()
    assert not {child.pid for child in multiprocessing.active_children()} & (first | other)


def test_rows_are_given_back_as_they_were_unless_others_take_their_place(pictures):
    train = replace(ImageStream(str(pictures), size=16, unreadable="skip").load()[0], workers=0)
    asked = [torch.tensor([3, 1]), torch.tensor([7, 9])]
    assert [rows is given for (_, rows), given in zip(train.read(asked, 0), asked, strict=True)] == [True, True]
    train.path(1).write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="it is skipped"):
        found = [rows.tolist() for _, rows in train.read(asked, 0)]
    assert found == [[3, 2], [7, 9]]


def test_reading_ahead_draws_nothing_from_torch(pictures):
    before = torch.get_rng_state()
    all_of(batches(ImageStream(str(pictures), size=16), workers=1).rest_of_epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_windows_lie_in_the_picture_and_cover_what_they_should():
    rng = np.random.default_rng(0)
    shares, aspects = [], []
    for _ in range(500):
        left, top, right, bottom = _window(400, 300, (0.08, 1.0), rng)
        assert -1e-9 <= left <= right <= 400 + 1e-9 and -1e-9 <= top <= bottom <= 300 + 1e-9
        shares.append((right - left) * (bottom - top) / 120_000)
        aspects.append((right - left) / (bottom - top))
    assert 0.08 <= min(shares) < 0.12 and max(shares) > 0.8
    assert 0.75 - 1e-9 <= min(aspects) < 0.8 and 1.25 < max(aspects) <= 4 / 3 + 1e-9
    assert _window(1000, 10, (1.0, 1.0), rng) == (495, 0, 505, 10), "no such window fits: the square in the middle"


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path, monkeypatch):
    ramp = np.linspace(0, 255, 640)[None, :, None] * np.ones((480, 1, 3))
    for name in ("a.jpg", "a.png"):
        Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / name, quality=95) if name.endswith("jpg") else (
            Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / name)
        )
    decoded = []
    draft = JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda self, *how: (draft(self, *how), decoded.append(self.size))[0])
    small = [RandomWindow(32).centre(tmp_path / name).astype(float) for name in ("a.jpg", "a.png")]
    assert decoded == [(80, 60)], "an eighth, of which the square is 52 pixels"
    assert np.abs(small[0] - small[1]).max() < 6
    # the middle 420 of 640 columns of a ramp from 0 to 255
    wanted = 255 * (110 + 420 * (np.arange(32) + 0.5) / 32) / 640
    assert np.abs(small[1][0, 16] - wanted).max() < 3


@pytest.fixture
def scene(tmp_path):
    """A smooth picture of 250 x 150 pixels, which no decoder of JPEG has touched."""
    across, down = np.linspace(0, 5, 250)[None, :], np.linspace(0, 3, 150)[:, None]
    waves = [127 + 120 * np.sin(across * (c + 1)) * np.cos(down + c) for c in range(3)]
    Image.fromarray(np.stack(waves, 2).astype(np.uint8)).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def apart(seen, wanted, edge=0):
    whole = np.asarray(wanted).transpose(2, 0, 1).astype(int)
    inside = slice(edge, whole.shape[1] - edge)
    return np.abs(seen.astype(int) - whole)[:, inside, inside].max()


@pytest.mark.parametrize("size", [32, 64, 100])
def test_the_middle_of_a_resnet_is_cut_out_of_a_picture_with_32_pixels_more(scene, size):
    with Image.open(scene) as image:
        wide = int(250 * (size + 32) / 150 + 0.5)
        large = image.resize((wide, size + 32), Image.Resampling.BICUBIC)
        left = (wide - size) // 2
        wanted = large.crop((left, 16, left + size, 16 + size))
    assert apart(RandomWindow(size, middle="resnet").centre(scene), wanted) <= 1
    assert apart(RandomWindow(size).centre(scene), wanted) > 20, "7/8 is another part at these sizes"


@pytest.mark.parametrize("size", [32, 64, 100])
def test_the_middle_of_an_efficientnet_is_its_share_of_the_shorter_side(scene, size):
    side = int(150 * size / (size + 32))
    left, top = (250 - side + 1) // 2, (150 - side + 1) // 2
    with Image.open(scene) as image:
        cut = image.crop((left, top, left + side, top + side))
        wanted = cut.resize((size, size), Image.Resampling.BICUBIC)
    assert apart(RandomWindow(size, middle="efficientnet").centre(scene), wanted, edge=2) <= 1
    assert apart(RandomWindow(size).centre(scene), wanted) > 20


def test_at_224_pixels_all_three_see_the_same_part():
    boxes = {name: box(500, 375, 224) for name, box in _CENTRES.items()}
    assert boxes["efficientnet"] == (86, 24, 414, 352), "328 of 375 pixels, the odd one above"
    for box in boxes.values():
        assert np.abs(np.subtract(box, boxes["seven-eighths"])).max() < 1.2
    larger = {name: box(500, 375, 600) for name, box in _CENTRES.items()}
    assert larger["efficientnet"][2] - larger["efficientnet"][0] == 356
    assert larger["seven-eighths"][2] - larger["seven-eighths"][0] == 375 * 7 / 8


def test_a_picture_of_a_stream_is_cut_as_its_source_says(pictures):
    train = ImageStream(str(pictures), size=16, middle="resnet").load()[0]
    assert train.look == RandomWindow(16, middle="resnet")
    assert not torch.equal(train[:].x, ImageStream(str(pictures), size=16).load()[0][:].x)


@pytest.fixture
def damaged(pictures):
    (pictures / "train" / "bee" / "03.JPG").write_bytes(b"no picture")
    (pictures / "train" / "cat" / "notes.txt").write_text("nothing")
    (pictures / "val" / "ant" / "00.png").write_bytes(b"")
    return pictures


def test_a_file_that_cannot_be_read_stops_and_is_named(damaged):
    source = ImageStream(str(damaged), size=16)
    sentence = r"^\S*/(03\.JPG|notes\.txt|00\.png) is no picture that can be read \(.*\): remove it, or skip .*$"
    for workers in (0, 1):
        with pytest.raises(UserError, match=sentence) as error:
            all_of(batches(source, workers=workers).rest_of_epoch(0))
        assert "\n" not in str(error.value)
        del error  # it holds the worker; found by the garbage collector it would take 5 s to end
    with pytest.raises(UserError, match=sentence):
        source.load()[1][:]
    with pytest.raises(UserError, match="is no picture that can be read"):
        ImageFolder(str(damaged), size=16).load()


def test_what_is_hidden_is_no_class_and_no_picture(pictures):
    (pictures / "train" / ".cache").mkdir()
    (pictures / "train" / "ant" / ".hidden").write_text("nothing")
    assert len(ImageStream(str(pictures), size=16).load()[0][:]) == 36
    (pictures / "val" / "dog").mkdir()
    with pytest.raises(UserError, match="classes that the training set lacks: dog"):
        ImageStream(str(pictures)).load()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_skipped_is_named_and_counted_once(damaged, workers):
    found = batches(ImageStream(str(damaged), size=16, unreadable="skip"), workers=workers)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        x, y, index = all_of(found.rest_of_epoch(0))
        all_of(found.rest_of_epoch(6))
    said = [str(w.message) for w in seen if issubclass(w.category, UserWarning)]  # Python warns of forks besides
    assert len(said) == 2 and "it is skipped, the 1st of 37" in said[0] and "the 2nd of 37" in said[1]
    assert {name.rpartition("/")[2] for name in found.data.lost} == {"03.JPG", "notes.txt"}
    assert len(x) == 36 and torch.equal(found.data.y[index], y), "what took its place has its own label"
    names = [found.data.path(i).name for i in index.tolist()]
    assert "notes.txt" not in names
    with pytest.warns(UserWarning, match="the 1st of 12"):
        assert len(ImageStream(str(damaged), size=16, unreadable="skip").load()[1][:]) == 11


def test_a_folder_in_memory_can_skip_too(damaged):
    (damaged / "val").rename(damaged / "test")
    with pytest.warns(UserWarning, match="is skipped"):
        train, test = ImageFolder(str(damaged), size=16, unreadable="skip").load()
    assert (len(train), len(test)) == (35, 11)
    with pytest.warns(UserWarning, match="is skipped"):
        of_evaluation = ImageFolder(str(damaged), size=16, unreadable="skip").load_test()[:]
    assert torch.equal(of_evaluation.x, test.x), "the first few are the same for an audit and an evaluation"


def test_a_folder_of_nothing_but_rubbish_is_refused(damaged):
    for path in (damaged / "train").glob("*/*"):
        path.write_bytes(b"rubbish")
    train = ImageStream(str(damaged), size=16, unreadable="skip", workers=0).load()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=r"none of 37 pictures in .* can be read"):
            train[:]
        with pytest.raises(UserError, match=r"none of 37 pictures in .* can be read"):
            next(Batches(train, 4).rest_of_epoch(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size = 0 of pictures must be at least 1"),
        ({"scale": (0.5, 0.2)}, "is no share of the area"),
        ({"middle": "centre"}, "middle = 'centre' is none of seven-eighths, efficientnet, resnet"),
        ({"unreadable": "ignore"}, "a reason to stop or to skip"),
        ({"workers": -1}, "workers = -1 of pictures must be at least 0"),
        ({"folder": "nowhere"}, "there is no folder nowhere/train: pictures are read from nowhere/train/CLASS/"),
    ],
)
def test_a_stream_that_makes_no_sense_is_refused(pictures, change, message):
    with pytest.raises(UserError, match=message):
        replace(ImageStream(str(pictures)), **change).load()


def test_what_is_held_out_is_decoded_and_the_rest_stays_in_files(pictures):
    train = ImageStream(str(pictures), size=16).load()[0]
    rest, held = hold_out(train, 0.25)
    assert (len(rest), len(held)) == (27, 9) and isinstance(held, TensorData) and not isinstance(rest, TensorData)
    paths = {rest.path(i) for i in range(27)}
    assert len(paths) == 27
    assert Normalize.of(train).mean.shape == (1, 3, 1, 1)
    few, test = Subset(ImageStream(str(pictures), size=16, workers=0), 5, 3).load()
    assert (len(few), len(test)) == (5, 3) and {few.path(i) for i in range(5)} == {train.path(i) for i in range(5)}


@pytest.mark.parametrize(
    "made",
    [
        lambda stream: Subset(stream, 5, 3),
        lambda stream: ClassSubset(stream, (2, 0)),
        lambda stream: Resized(stream, 1, 8, 8),
        lambda stream: Subset(InvertedImages(stream), 5),
    ],
    ids=["subset", "classes", "resized", "inverted"],
)
def test_windows_are_drawn_anew_in_data_made_from_a_stream(made, pictures):
    data, _ = made(ImageStream(str(pictures), size=16, workers=0, scale=(0.3, 1.0))).load()
    rows = torch.arange(4)
    (one, *_), (again, *_), (other, *_) = (next(iter(data.read([rows], seed))) for seed in (1, 1, 2))
    assert one.x.shape[1:] == data.shape and torch.equal(one.y, data.y[rows])
    assert torch.equal(one.x, again.x) and not torch.equal(one.x, other.x)


def test_grey_values_of_16_bits_keep_their_share_of_the_range(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            values = rng.integers(0, 2**16, (20, 20)).astype(np.uint16)
            Image.fromarray(values).save(tmp_path / part / name / "0.png")
    for source in (ImageFolder(str(tmp_path), size=20), ImageStream(str(tmp_path), size=20, workers=0)):
        train, _ = source.load()
        assert train[:].x.float().mean() / 255 == pytest.approx(0.5, abs=0.05)
    content = _small(tmp_path / "train" / "a" / "0.png", 20)
    assert np.asarray(Image.open(io.BytesIO(content))).mean() / 255 == pytest.approx(0.5, abs=0.05)
    Image.fromarray(rng.random((20, 20)).astype(np.float32)).save(tmp_path / "train" / "a" / "0.tif")
    with pytest.raises(UserError, match=r"0\.tif is no picture that can be read \(its pixels are numbers of 32 bits"):
        ImageFolder(str(tmp_path), size=20).load()


@pytest.mark.slow
def test_a_run_on_a_stream_is_interrupted_resumed_and_evaluated(tiny, pictures, tmp_path):
    """With workers or without, interrupted or not: the same bits."""
    source = ImageStream(str(pictures), size=8, workers=0, scale=(0.5, 1.0))
    recipe = replace(tiny, data=source, batch_size=8, held_out=0.25, augment=(Flip(),))
    whole = fit(recipe, tmp_path / "whole", device="cpu")
    other = replace(recipe, data=replace(source, workers=1))

    def stop(news):
        if news.progress.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        fit(other, tmp_path / "part", device="cpu", on_progress=stop)
    part = fit(other, tmp_path / "part", device="cpu")
    for which in ("best", "last"):
        a, b = (load_file(run.weights(which)) for run in (whole, part))
        assert all(torch.equal(a[key], b[key]) for key in a)
    found = evaluate_run(whole, recipe, device="cpu")
    assert len(found["last"].robust["clean"]) == 12


def train_until_all_are_told(folder, run):
    """Send a signal to a group of its own, as a batch system does: to the process that trains and to its workers."""
    os.setsid()
    attack = PGD(Linf(0.1), steps=2)
    recipe = replace(
        quickstart(),
        data=ImageStream(str(folder), size=8, workers=2),
        model=Build(small_cnn, width=2),
        epochs=50,
        batch_size=8,
        held_out=0.25,
        method=Method(attack, CrossEntropy()),
        selection=attack,
    )

    def stop(news):
        if news.progress.step == 5:
            os.killpg(0, signal.SIGTERM)

    with pytest.raises(Interrupted):
        fit(recipe, run, device="cpu", on_progress=stop)


@pytest.mark.slow
def test_a_signal_to_all_processes_lets_the_run_save(pictures, tmp_path):
    assert ended(started(train_until_all_are_told, pictures, tmp_path / "run")) == 0
    assert RunFolder(tmp_path / "run").checkpoints.exists()
