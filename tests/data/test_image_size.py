"""Training images that grow from epoch to epoch."""

import json

import numpy as np
import pytest
import torch
from conftest import toy_data
from PIL import Image

from sparring import PGD, AcceleratedCopy, CrossEntropy, Linf, Method, State, TensorData, UserError, train_step
from sparring.core.modes import eval_mode
from sparring.core.serialization import from_plain, to_plain
from sparring.core.types import Batch, Progress
from sparring.data import ImageStream, ProgressiveResizing
from sparring.data.image_size import resized
from sparring.models import preact_resnet18, small_cnn

GROWING = ProgressiveResizing(((0, 8), (2, 12), (5, 16)))


@pytest.fixture
def pictures(tmp_path):
    """Six smooth pictures of two classes."""
    for part in ("train", "val"):
        for number, name in enumerate(("ant", "bee")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(3):
                waves = np.sin(np.linspace(0, 3 + i, 48))[:, None] * np.cos(np.linspace(0, 2 + number, 64))
                image = (127 + 100 * waves[:, :, None] * np.array([1, 0.5, 0.2])).astype(np.uint8)
                Image.fromarray(image).save(tmp_path / part / name / f"{i}.png")
    return ImageStream(str(tmp_path), size=16, workers=0).load()[0]


def read(data, epoch, seed=3):
    rows = [torch.arange(4), torch.arange(4, 6)]
    found = list(GROWING.reader(data, epoch).read(rows, seed))
    return torch.cat([part.x for part, _ in found]), found


def test_the_size_is_that_of_the_last_pair_that_has_begun():
    assert [GROWING.size(epoch) for epoch in (0, 1, 2, 4, 5, 99)] == [8, 8, 12, 12, 16, 16]


@pytest.mark.parametrize("sizes", [(), ((1, 8),), ((0, 8), (3, 12), (2, 16)), ((0, 8), (0, 12))])
def test_sizes_begin_at_epoch_0_and_follow_each_other(sizes):
    with pytest.raises(UserError, match="sizes of images begin at epoch 0 and each later"):
        ProgressiveResizing(sizes)


def test_a_size_is_a_whole_number_of_pixels():
    with pytest.raises(UserError, match="size = 0 is no whole number from 1 on"):
        ProgressiveResizing(((0, 0),))


def test_pictures_are_decoded_at_the_size_from_the_same_windows(pictures):
    small, found = read(pictures, epoch=0)
    large, wanted = read(pictures, epoch=5)
    assert (small.shape, small.dtype) == ((6, 3, 8, 8), torch.uint8) and large.shape == (6, 3, 16, 16)
    for (part, rows), (other, same) in zip(found, wanted, strict=True):
        assert torch.equal(part.y, other.y) and torch.equal(rows, same)
    apart = (small / 255 - resized(large, 8)).abs()
    assert float(apart.max()) < 0.05, "only the size of a window changes, not its place"
    assert GROWING.reader(pictures, 5) is pictures
    assert pictures.shape == (3, 16, 16), "held-out and test images keep their size"


def test_a_file_that_is_skipped_is_counted_at_every_size_together(pictures):
    assert GROWING.reader(pictures, 0).lost is pictures.lost


def test_images_in_memory_are_resized_in_their_batches():
    data = TensorData(
        torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(6, 1, 1, 1), torch.arange(6), ("a",)
    )
    small, found = read(data, epoch=0)
    assert small.shape == (6, 1, 8, 8) and small.dtype == torch.float32
    assert torch.equal(torch.cat([rows for _, rows in found]), torch.arange(6))
    assert torch.equal(torch.cat([part.y for part, _ in found]), torch.arange(6))
    assert read(data, epoch=9)[0] is not None and GROWING.reader(data, 9) is data


def test_shrinking_averages_what_it_leaves_out():
    dots = torch.zeros(1, 1, 32, 32)
    dots[..., ::4, ::4] = 1  # without antialiasing, none of them would be seen
    inside = resized(dots, 8)[..., 1:-1, 1:-1]
    assert torch.allclose(inside, torch.full_like(inside, 1 / 16), atol=1e-6)
    noise = torch.rand(4, 3, 16, 16)
    assert resized(noise, 24).min() >= 0 and resized(noise, 24).max() <= 1
    assert resized(torch.rand(1, 3, 20, 30), 10).shape == (1, 3, 10, 15), "the ratio of the sides stays"
    assert torch.equal(resized(noise, 16), noise)


def test_a_model_that_takes_one_size_alone_is_refused_before_training():
    few = torch.rand(2, 3, 16, 16)
    GROWING.check(preact_resnet18(4, width=0.05), few)
    with pytest.raises(UserError, match=r"does not take images of (8|12) pixels, .*: leave that size out"):
        GROWING.check(small_cnn(4, (3, 16, 16), width=2), few)


def test_sizes_survive_the_disk():
    assert from_plain(json.loads(json.dumps(to_plain(GROWING)))) == GROWING


def test_an_accelerated_copy_follows_images_of_every_size():
    torch.manual_seed(0)
    model, backend = preact_resnet18(3, width=0.05).eval(), AcceleratedCopy("fp32", "off")
    for size, kind in ((8, None), (16, "fp32 in channels-last order"), (12, "fp32 in channels-last order")):
        x = torch.rand(4, 3, size, size)
        with backend(model, x, kind) as attacked, torch.no_grad():
            assert attacked is not model
            assert torch.allclose(attacked(x), model(x), atol=1e-4)


def test_a_training_goes_on_when_its_images_grow():
    torch.manual_seed(0)
    model, data = preact_resnet18(3, (1, 4, 4), width=0.05), toy_data()
    method = Method(PGD(Linf(0.1), 2), CrossEntropy())
    state = State.start(method, model, torch.optim.SGD(model.parameters(), 0.01), data, 0)
    sizes = ProgressiveResizing(((0, 4), (1, 8), (2, 6)))
    for epoch in range(3):
        ((part, rows),) = sizes.reader(data, epoch).read([torch.arange(12)], 0)
        x = resized(part.x, sizes.size(epoch))
        assert x.shape[-1] == (4, 8, 6)[epoch]
        train_step(method, state, Batch(x, part.y, rows), Progress(epoch, 1, 3))
    state.check_finite()
    with eval_mode(model), torch.no_grad():
        assert model(resized(data[:2].x, 4)).isfinite().all()
