"""RandAugment and AutoAugment, beside Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from sparring import UserError, make_rng
from sparring.core.rng import PerExample
from sparring.data import AutoAugment, RandAugment
from sparring.data.auto_augment import _OPERATIONS, _applied

SIZE = 24
BYTES = torch.from_numpy(
    np.array(Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((SIZE, SIZE)))
)
X = (BYTES.permute(2, 0, 1)[None] / 255).contiguous()


def ours(name, level, sign=1.0, x=X):
    chosen = torch.tensor([_OPERATIONS.index(name)])
    return _applied(x, _OPERATIONS, chosen, torch.tensor([level]), torch.tensor([sign]))


def pillow(name, level, sign):
    image = Image.fromarray(BYTES.numpy())
    signed = level * sign

    def affine(*numbers):
        return image.transform(image.size, Image.Transform.AFFINE, numbers, Image.Resampling.NEAREST)

    enhancers = {
        "Brightness": ImageEnhance.Brightness,
        "Color": ImageEnhance.Color,
        "Contrast": ImageEnhance.Contrast,
        "Sharpness": ImageEnhance.Sharpness,
    }
    if name in enhancers:
        return enhancers[name](image).enhance(1 + 0.9 * signed)
    return {
        "Identity": lambda: image,
        "ShearX": lambda: affine(1, -0.3 * signed, 0, 0, 1, 0),
        "ShearY": lambda: affine(1, 0, 0, -0.3 * signed, 1, 0),
        "TranslateX": lambda: affine(1, 0, -int(150 / 331 * SIZE * signed), 0, 1, 0),
        "TranslateY": lambda: affine(1, 0, 0, 0, 1, -int(150 / 331 * SIZE * signed)),
        "Rotate": lambda: image.rotate(30 * signed, Image.Resampling.NEAREST),
        "Posterize": lambda: ImageOps.posterize(image, 8 - round(4 * level)),
        "Solarize": lambda: ImageOps.solarize(image, 255 * (1 - level)),
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Invert": lambda: ImageOps.invert(image),
    }[name]()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("level", [0.3, 1.0])
@pytest.mark.parametrize("name", _OPERATIONS)
def test_an_operation_is_that_of_pillow(name, level, sign):
    found = (255 * ours(name, level, sign)[0].permute(1, 2, 0)).round()
    wanted = torch.from_numpy(np.array(pillow(name, level, sign))).float()
    assert float(((found - wanted).abs() <= 1.01).float().mean()) > 0.98, "a turned corner may fall between two pixels"
    if name != "Identity" and not (name == "Sharpness" and level < 1):
        assert not torch.equal(found, BYTES.float()), "it changes something"


def test_equalizing_is_exact_also_where_a_channel_is_flat():
    image = BYTES.clone()
    image[..., 1] = 77
    x = (image.permute(2, 0, 1)[None] / 255).contiguous()
    wanted = torch.from_numpy(np.array(ImageOps.equalize(Image.fromarray(image.numpy())))).permute(2, 0, 1).float()
    assert torch.equal((255 * ours("Equalize", 0.0, x=x)[0]).round(), wanted)


def test_each_image_gets_an_operation_of_its_own_and_all_are_used():
    x = X.expand(700, -1, -1, -1).contiguous()
    made = RandAugment(1, 30)(x, PerExample(1, torch.arange(700)))
    kinds = torch.cat([ours(name, 1.0, sign) for name in _OPERATIONS if name != "Invert" for sign in (1.0, -1.0)])
    nearest = torch.cdist(made.flatten(1), kinds.flatten(1)).argmin(1) // 2
    counts = nearest.bincount(minlength=14)
    assert float(torch.cdist(made.flatten(1), kinds.flatten(1)).amin(1).max()) < 0.1
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("change", [RandAugment(), AutoAugment()])
def test_images_stay_images_and_do_not_influence_each_other(change):
    x = torch.rand(40, 3, 9, 7, generator=make_rng(0))
    whole = change(x, PerExample(4, torch.arange(40)))
    assert whole.shape == x.shape and 0 <= float(whole.min()) <= float(whole.max()) <= 1
    some = torch.tensor([31, 2])
    assert torch.allclose(change(x[some], PerExample(4, some)), whole[some])
    single = change(x[:, :1], PerExample(4, torch.arange(40)))
    assert single.shape == (40, 1, 9, 7), "images of one channel are taken, too"


def test_autoaugment_leaves_some_images_as_they_are_and_changes_most():
    x = torch.rand(300, 3, 8, 8, generator=make_rng(0))
    same = (AutoAugment()(x, PerExample(2, torch.arange(300))) == x).flatten(1).all(1).float().mean()
    assert 0.02 < float(same) < 0.4


@pytest.mark.parametrize("options", [{"operations": 0}, {"magnitude": 31}, {"magnitude": -1}])
def test_strengths_out_of_range_are_refused(options):
    with pytest.raises(UserError):
        RandAugment(**options)
