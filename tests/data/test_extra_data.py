"""Batches of real and extra images."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from sparring import PGD, Build, CrossEntropy, Linf, Method, Sum, TensorData, UserError, fit
from sparring.core import ranks
from sparring.data import NPZ, Batches, ExtraData, Flip, GeneratedImages, source_of
from sparring.data.extra import ExtraImages, JoinedData
from sparring.models import small_cnn
from sparring.objectives import TemporalEnsembling

REAL = TensorData(torch.full((50, 1, 4, 4), 10, dtype=torch.uint8), torch.arange(50) % 3, ("a", "b", "c"))
DRAWN = TensorData(torch.full((80, 1, 4, 4), 200, dtype=torch.uint8), torch.arange(80) % 2, ("a", "b"))


def batches(size=10, share=0.7, steps=None, **more):
    return Batches(REAL, size, seed=3, extra=ExtraImages(DRAWN, share, steps), **more)


def steps(made, first, count):
    found = []
    while len(found) < count:
        found += list(made.rest_of_epoch(first + len(found)))
    return found[:count]


def test_labels_of_extra_images_follow_the_names_of_classes():
    named = replace(REAL, classes=("bird", "cat", "dog"))
    drawn = replace(DRAWN, classes=("dog", "cat"))
    joined = ExtraData(Given(drawn)).load(named).joined(named)
    assert [joined.classes[y] for y in joined.y[50:54]] == ["dog", "cat", "dog", "cat"]
    with pytest.raises(UserError, match="the extra data have the class 'cow', which the real ones lack"):
        ExtraData(Given(replace(DRAWN, classes=("cat", "cow")))).load(named)
    with pytest.raises(UserError, match="the extra data have 4 classes, the real ones 3"):
        ExtraData(Given(replace(DRAWN, classes=("cow", "bird", "cat", "dog")))).load(named)
    numbered = replace(DRAWN, classes=("0", "1"))
    assert torch.equal(ExtraData(Given(numbered)).load(named).data.y, DRAWN.y), "numbers stay"


@dataclass(frozen=True)
class Given:
    data: TensorData

    def load(self):
        return self.data, self.data[:0]


@pytest.mark.parametrize(("share", "extra"), [(0.7, 7), (0.3, 3), (0.04, 0), (0.97, 10)])
def test_a_batch_has_the_share_of_extra_images_and_at_least_one_of_each_kind(share, extra):
    if not 0 < extra < 10:
        with pytest.raises(UserError, match="do not go with"):
            batches(share=share)
        return
    for batch in steps(batches(share=share), 0, 12):
        assert int((batch.index >= 50).sum()) == extra
        drawn = batch.x[:, 0, 0, 0] > 0.5
        assert torch.equal(drawn, batch.index >= 50), "numbers of extra images follow those of the real ones"
        both = torch.where(drawn, DRAWN.y[(batch.index - 50).clamp_min(0)], REAL.y[batch.index.clamp_max(49)])
        assert torch.equal(batch.y, both)


def test_an_epoch_is_a_pass_over_the_real_images_and_both_streams_use_each_image_equally_often():
    made = batches(share=0.5)
    assert len(made) == 10
    index = torch.cat([b.index for b in steps(made, 0, 160)])
    assert torch.equal(index.bincount(minlength=130)[:50], torch.full((50,), 16))
    assert torch.equal(index.bincount(minlength=130)[50:], torch.full((80,), 10))
    orders = [torch.cat([b.index[b.index < 50] for b in steps(made, first, 10)]) for first in (0, 10)]
    assert not torch.equal(*orders) and torch.equal(orders[0].sort().values, torch.arange(50))


def test_bytes_and_floats_are_joined_as_floats():
    found = JoinedData(REAL, replace(DRAWN, x=DRAWN.x / 255))[torch.tensor([60, 3])]
    assert found.x[:, 0, 0, 0].tolist() == pytest.approx([200 / 255, 10 / 255])
    assert JoinedData(REAL, DRAWN)[:].x.dtype == torch.uint8


def test_an_epoch_can_be_counted_in_steps_and_no_image_is_left_out_at_its_end():
    made = batches(share=0.7, steps=4)
    assert len(made) == 4
    index = torch.cat([b.index for b in steps(made, 0, 50)])
    assert torch.equal(index.bincount(minlength=130)[:50], torch.full((50,), 3))


@pytest.mark.parametrize("begin", [1, 9, 13])
def test_batches_go_on_in_the_middle_of_an_epoch(begin):
    made = batches(augment=(Flip(),), views=2)
    whole, rest = steps(made, 0, 20)[begin:], steps(made, begin, 20 - begin)
    for a, b in zip(whole, rest, strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.index, b.index)


def test_views_follow_one_after_the_other():
    for batch in steps(batches(views=2), 0, 3):
        first, second = batch.index.chunk(2)
        assert torch.equal(first, second) and batch.whole == 20


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_and_micro_batches_divide_both_kinds_evenly(world, monkeypatch):
    whole = steps(batches(), 0, 6)
    parts = []
    for rank in range(world):
        monkeypatch.setattr(ranks, "world", lambda: world)
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        parts.append(steps(batches(), 0, 6))
    for step in range(6):
        mine = [part[step] for part in parts]
        assert torch.equal(torch.cat([b.index for b in mine]), whole[step].index)
        shares = [float((b.index >= 50).float().mean()) for b in mine]
        assert max(shares) - min(shares) <= 0.5 and sum(b.share for b in mine) == pytest.approx(1)
    monkeypatch.undo()
    micro = replace(whole[0], accumulate=2).micro_batches()
    assert [int((b.index >= 50).sum()) for b in micro] == [3, 4]


@pytest.mark.parametrize("names", [("image", "label"), ("x_train", "y_train"), ("x", "y")])
def test_a_generated_set_is_mapped_under_any_of_its_usual_names(names, tmp_path):
    x, y = np.arange(6 * 4 * 4 * 3, dtype=np.uint8).reshape(6, 4, 4, 3), np.array([0, 2, 1, 0, 1, 2])
    np.savez(tmp_path / "drawn.npz", **dict(zip(names, (x, y), strict=True)))
    drawn, none = source_of(f"generated:{tmp_path / 'drawn.npz'}").load()
    assert len(none) == 0 and drawn.shape == (3, 4, 4) and drawn.classes == ("0", "1", "2")
    assert torch.equal(drawn[torch.tensor([4])].x, torch.from_numpy(x[4:5].transpose(0, 3, 1, 2)))
    assert drawn.y.tolist() == y.tolist()


def test_a_generated_set_without_known_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", pictures=np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(UserError, match="holds pictures: wanted are image and label, or x_train and y_train"):
        GeneratedImages(str(tmp_path / "other.npz")).load()
    with pytest.raises(UserError, match="generated needs the name of a data set"):
        source_of("generated")


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        (np.zeros((4, 5, 5), np.uint8), np.arange(4), r"real training images are \(1, 8, 8\), but extra ones are"),
        (np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 2, 10]), "a label 10, but the real ones have 10 classes"),
        (np.zeros((4, 8, 8), np.float32), np.arange(4), "mapped images are bytes"),
    ],
)
def test_extra_data_of_another_kind_are_refused(x, y, reason, tiny, tmp_path):
    np.savez(tmp_path / "drawn.npz", image=x, label=y)
    recipe = replace(tiny, extra_data=ExtraData(GeneratedImages(str(tmp_path / "drawn.npz"))))
    with pytest.raises(UserError, match=reason):
        fit(recipe, tmp_path / "run")


@pytest.mark.parametrize(("share", "steps"), [(0.0, None), (1.0, None), (0.5, 0)])
def test_shares_and_steps_out_of_range_are_refused(share, steps):
    with pytest.raises(UserError):
        ExtraData(NPZ("x.npz"), share, steps)


@pytest.mark.slow
def test_a_run_with_extra_data_resumes_bit_for_bit_and_remembers_extra_examples(tiny, tmp_path):
    from helpers import bits, stop_at

    from sparring.training import Interrupted

    rng = np.random.default_rng(0)
    np.savez(tmp_path / "drawn.npz", image=rng.integers(0, 256, (700, 8, 8), dtype=np.uint8), label=np.arange(700) % 10)
    recipe = replace(
        tiny,
        model=Build(small_cnn, width=4),
        method=Method(PGD(Linf(0.1), 1), Sum((CrossEntropy(), TemporalEnsembling(3.0)))),
        extra_data=ExtraData(GeneratedImages(str(tmp_path / "drawn.npz")), 0.6, 5),
    )
    whole = fit(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(recipe, tmp_path / "cut", on_progress=stop_at(7))
    assert bits(fit(recipe, tmp_path / "cut")) == bits(whole)
    assert bits(fit(replace(recipe, extra_data=None), tmp_path / "without")) != bits(whole)
