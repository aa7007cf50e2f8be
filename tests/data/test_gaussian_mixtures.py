"""Images drawn from Gaussian mixtures."""

import pytest
import torch

from sparring import UserError
from sparring.data import Digits, ExtraData, GaussianMixtureImages, ImageStream
from sparring.data.gaussian_mixtures import _drawn


def test_drawn_images_look_like_their_class():
    real, test = Digits().load()
    drawn, none = GaussianMixtureImages(Digits(), count=205, components=2, dimensions=20).load()
    assert len(none) == 0 and drawn.shape == real.shape and drawn.classes == real.classes
    assert drawn.y.bincount().tolist() == [20, 21] * 5
    means = torch.stack([real.x[real.y == number].float().mean(0) for number in range(10)]).flatten(1)
    nearest = torch.cdist(drawn.x.float().flatten(1), means).argmin(1)
    real_nearest = torch.cdist(test.x.float().flatten(1), means).argmin(1)
    assert float((nearest == drawn.y).float().mean()) > float((real_nearest == test.y).float().mean()) - 0.1
    apart = torch.cdist(drawn.x.float().flatten(1), real.x.float().flatten(1)).amin(1)
    assert float((apart > 0).float().mean()) > 0.99, "they are no copies"


def test_the_seed_decides_the_images():
    made = [GaussianMixtureImages(Digits(), 30, 2, 10, seed).load()[0].x for seed in (0, 1)]
    _drawn.cache_clear()
    assert torch.equal(GaussianMixtureImages(Digits(), 30, 2, 10, 0).load()[0].x, made[0])
    assert not torch.equal(*made)


def test_they_serve_as_extra_data():
    real, _ = Digits().load()
    extra = ExtraData(GaussianMixtureImages(Digits(), 30, 2, 10)).load(real)
    assert len(extra.data) == 30 and extra.count(10) == 7


def test_bad_requests_are_refused(tmp_path):
    with pytest.raises(UserError, match="too few for 500 Gaussians"):
        GaussianMixtureImages(Digits(), 10, 500).load()
    with pytest.raises(UserError, match="components"):
        GaussianMixtureImages(Digits(), components=0)
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
    from PIL import Image

    for part in ("train", "val"):
        Image.new("RGB", (8, 8)).save(tmp_path / part / "a" / "0.png")
    with pytest.raises(UserError, match="stay in files"):
        GaussianMixtureImages(ImageStream(str(tmp_path), 8)).load()
