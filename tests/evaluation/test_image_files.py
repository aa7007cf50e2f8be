"""An evaluation of images in files, which are read batch by batch."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Linear, toy_net
from helpers import labelled_by, same_results
from PIL import Image
from torch import nn

import sparring.data.libraries
from sparring import (
    L2,
    PGD,
    Linf,
    Margin,
    OriginalModel,
    Square,
    TensorData,
    UserError,
    WhiteBox,
    evaluate,
    evaluate_run,
    fit,
)
from sparring.attacks import DDN
from sparring.cli import run
from sparring.data import ImageStream, load_test, source_of
from sparring.data.mapped import MappedImages
from sparring.data.pictures import Pictures
from sparring.evaluation import Ensemble, MinimumNorm
from sparring.records import merge_evaluations

LINF = Linf(0.06)
NEAREST = MinimumNorm(L2(0.5), (DDN(5),))  # steps of FAB end on the boundary, where the last bit decides
CASCADE = Ensemble({"pgd": WhiteBox(PGD(LINF, 3, 0.01, patience=0)), "square": WhiteBox(Square(LINF, 50), Margin)})
PGD_3 = {"pgd": WhiteBox(PGD(LINF, 3, patience=0))}
ON_MODEL = {"backend": OriginalModel()}


@pytest.fixture(scope="module")
def net():
    """In float64, in which batches of other sizes differ by less than an attack notices."""
    return toy_net().eval().double()


@pytest.fixture(scope="module")
def data(net):
    return labelled_by(net)


@dataclass(frozen=True)
class Counting:
    """Images that stand for images in files, and how many were read at once."""

    held: TensorData
    most: list

    y = property(lambda self: self.held.y)
    classes = property(lambda self: self.held.classes)
    shape = property(lambda self: self.held.shape)

    def __len__(self):
        return len(self.held)

    def __getitem__(self, rows):
        found = self.held[rows]
        self.most.append(len(found))
        return found

    def read(self, batches, seed):
        raise AssertionError("this is for training")

    def part(self, rows):
        return Counting(self.held.part(rows), self.most)

    relabelled = to = None


@pytest.mark.slow
def test_images_in_files_are_never_read_more_than_a_batch_at_once(net, data):
    """AutoAttack's kind of cascade, smallest distances, pictures and notes included."""
    adversaries = {"both": CASCADE, "nearest": NEAREST}
    whole = evaluate(net, data, adversaries, batch_size=8, keep_images=True, **ON_MODEL)
    for shard, least in ((None, 60), ((2, 3), 20)):
        files = Counting(data, [])
        found = evaluate(net, files, adversaries, batch_size=8, keep_images=True, shard=shard, **ON_MODEL)
        assert max(files.most) == 8
        assert sum(files.most) >= 3 * least, "each stage reads its batches anew"
        if shard is None:
            same_results(found, whole)


@pytest.fixture
def pictures(tmp_path):
    """Sixteen test pictures of two kinds, and two of training."""
    for part, count in (("train", 1), ("val", 8)):
        for kind in ("ant", "bee"):
            (tmp_path / part / kind).mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng(10 * i + (kind == "bee"))
                Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)).save(
                    tmp_path / part / kind / f"{i}.png"
                )
    return tmp_path


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval()


@pytest.fixture
def decoded(monkeypatch):
    """The number of pictures that each read decodes."""
    counts, decode = [], Pictures.__getitem__

    def counted(self, rows):
        found = decode(self, rows)
        counts.append(len(found))
        return found

    monkeypatch.setattr(Pictures, "__getitem__", counted)
    return counts


def test_pictures_of_a_stream_are_decoded_batch_by_batch(pictures, decoded):
    source = ImageStream(str(pictures), size=4)
    whole = evaluate(small_net(), source.load()[1][:], PGD_3, **ON_MODEL)
    decoded.clear()
    found = evaluate(small_net(), source, PGD_3, batch_size=8, **ON_MODEL)
    assert max(decoded) == 8 < len(whole.label)
    same_results(found, whole)


@pytest.mark.parametrize("change", ["", "+rotated", "+inverted", "+classes=1,0"])
def test_pictures_of_a_named_folder_are_decoded_batch_by_batch(pictures, decoded, change):
    """With `sparring.evaluate` and on the command line; the same as if all had been decoded first."""
    name = f"folder:{pictures}+size=4{change}"
    whole = evaluate(small_net(), source_of(name).load()[1], PGD_3, **ON_MODEL)
    decoded.clear()
    found = evaluate(small_net(), name, PGD_3, batch_size=8, **ON_MODEL)
    assert max(decoded) == 8 < len(whole.label)
    same_results(found, whole)


def test_a_command_on_named_pictures_decodes_a_batch_at_a_time(pictures, decoded, monkeypatch, capsys):
    monkeypatch.setattr("sparring.cli.models.foreign_model", lambda *given: small_net())
    command = ["evaluate", "my:net", "--data", f"folder:{pictures}+size=4", "--attack", "fgsm", "--eps", "0.1"]
    assert run([*command, "--batch-size", "8", "--json"]) == 0
    assert '"examples": 16' in capsys.readouterr().out
    assert max(decoded) == 8


def test_a_library_decodes_named_pictures_when_they_are_read(monkeypatch):
    """A library as torchvision is: its class gives a list of pictures with their labels."""
    asked = []

    class Few:
        classes = ("ant", "bee")
        targets = tuple(i % 2 for i in range(12))

        def __init__(self, root, split, download):
            pass

        def __len__(self):
            return 12

        def __getitem__(self, row):
            asked.append(row)
            return Image.new("RGB", (6, 5), (row * 7, 0, 0)), range(2)[self.targets[row]]

    sets = SimpleNamespace(Few=Few, __all__=["Few"])
    monkeypatch.setattr(sparring.data.libraries, "library", lambda *given: sets)
    data = load_test("torchvision:Few+size=4")
    assert not asked
    first = data[:3]
    assert len(asked) == 3 and first.x.shape == (3, 3, 4, 4)
    whole = source_of("torchvision:Few+size=4").load()[1]
    assert torch.equal(data[:].x, whole.x) and torch.equal(data.y, whole.y) and data.classes == whole.classes


def test_a_mapped_file_stays_a_file_when_it_is_named(tmp_path, monkeypatch):
    x, y = np.random.default_rng(0).integers(0, 255, (16, 4, 4, 3), dtype=np.uint8), np.arange(16) % 2
    np.savez(tmp_path / "t.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    read, gather = [], MappedImages.__getitem__
    monkeypatch.setattr(MappedImages, "__getitem__", lambda self, rows: read.append(len(rows)) or gather(self, rows))
    evaluate(small_net(), f"mapped:{tmp_path / 't.npz'}", PGD_3, batch_size=8, **ON_MODEL)
    assert max(read) == 8


@pytest.mark.filterwarnings("ignore:.*it is skipped")
def test_a_picture_that_cannot_be_read_is_left_out_and_the_others_keep_their_numbers(pictures):
    source = ImageStream(str(pictures), size=4, unreadable="skip")
    test = source.load()[1]
    test.path(5).write_bytes(b"no picture")
    whole = evaluate(small_net(), source, PGD_3, batch_size=4, **ON_MODEL)
    assert whole.index.tolist() == [row for row in range(16) if row != 5]
    parts = [evaluate(small_net(), source, PGD_3, shard=(number, 3), **ON_MODEL) for number in (1, 2, 3)]
    same_results(merge_evaluations(parts), whole)


@pytest.mark.filterwarnings("ignore:.*it is skipped")
def test_a_picture_that_can_no_longer_be_read_stops_the_evaluation(pictures):
    source = ImageStream(str(pictures), size=4, unreadable="skip")
    path = source.load()[1].path(3)

    class Breaking(nn.Sequential):
        def forward(self, x):
            path.write_bytes(b"no picture")
            return super().forward(x)

    with pytest.raises(UserError, match="1 of 4 images could be read at first and cannot be read now: check the disk"):
        evaluate(Breaking(*small_net()).eval(), source, PGD_3, batch_size=4, **ON_MODEL)


def test_images_in_files_that_are_out_of_range_are_named():
    class Bright(torch.utils.data.Dataset):
        targets = [0, 1] * 6

        def __len__(self):
            return 12

        def __getitem__(self, row):
            if row >= 12:
                raise IndexError
            return torch.full((1, 4, 4), 2.0 if row == 9 else 0.5), row % 2

    with pytest.raises(UserError, match=r"evaluation images 8 to 11 span \[0\.5, 2\], outside \[0, 1\]"):
        evaluate(Linear(), Bright(), PGD_3, batch_size=4)


@pytest.mark.slow
def test_a_run_on_a_stream_is_evaluated_batch_by_batch(tiny, pictures, tmp_path, monkeypatch):
    source = ImageStream(str(pictures), size=4, workers=0)
    attack = replace(tiny.evaluation, examples=12, batch_size=8)
    recipe = replace(tiny, data=source, epochs=1, batch_size=2, held_out=0, evaluation=attack)
    run = fit(recipe, tmp_path / "run", device="cpu")
    decoded, decode = [], Pictures.__getitem__

    def counted(self, rows):
        decoded.append(len(range(len(self))[rows] if isinstance(rows, slice) else rows))
        return decode(self, rows)

    monkeypatch.setattr(Pictures, "__getitem__", counted)
    found = evaluate_run(run, recipe, device="cpu")
    assert max(decoded) == 8
    assert found["last"].index.tolist() == list(range(12))
