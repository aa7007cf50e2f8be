"""An evaluation of images in files, which are read batch by batch."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from conftest import Linear, toy_net
from helpers import labelled_by, same_results
from PIL import Image
from torch import nn

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
from sparring.data import ImageStream
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


def test_pictures_of_a_stream_are_decoded_batch_by_batch(pictures, monkeypatch):
    source = ImageStream(str(pictures), size=4)
    whole = evaluate(small_net(), source.load()[1][:], PGD_3, **ON_MODEL)
    decoded, decode = [], Pictures.__getitem__

    def counted(self, rows):
        found = decode(self, rows)
        decoded.append(len(found))
        return found

    monkeypatch.setattr(Pictures, "__getitem__", counted)
    found = evaluate(small_net(), source, PGD_3, batch_size=8, **ON_MODEL)
    assert max(decoded) == 8 < len(whole.label)
    same_results(found, whole)


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
