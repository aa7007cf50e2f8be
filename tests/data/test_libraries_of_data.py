"""Data sets of torchvision and of the Hub by name, on files that the test writes. Nothing is downloaded."""

import importlib
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from sparring import UserError
from sparring.data import HubData, TorchvisionData, load_test, source_of


def loads(name):
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError):
        return False
    return True


def pictures(top, parts):
    """Pictures of 20 x 12 pixels in TOP/PART/CLASS/, one colour a class."""
    rng = np.random.default_rng(0)
    for part in parts:
        for number, kind in enumerate(("ant", "bee")):
            (top / part / kind).mkdir(parents=True)
            for i in range(3):
                colours = rng.integers(0, 100, (12, 20, 3), dtype=np.uint8)
                colours[..., number] = 200
                Image.fromarray(colours).save(top / part / kind / f"{i}.png")


@pytest.mark.skipif(not loads("torchvision"), reason="torchvision is not installed")
def test_a_set_of_torchvision_is_named(tmp_path):
    pictures(tmp_path / "country211", ("train", "test"))
    source = source_of(f"torchvision:Country211:{tmp_path}+size=8")
    assert source == TorchvisionData("Country211", str(tmp_path), 8)
    train, test = source.load()
    assert train.classes == ("ant", "bee")
    assert train.x.shape == (6, 3, 8, 8)
    assert train.x.dtype == torch.uint8
    assert sorted(test.y.tolist()) == [0, 0, 0, 1, 1, 1]
    ant = test.x[test.y == 0][0]
    assert int(ant[0].min()) > int(ant[1].max()), "ants are red"
    assert load_test(f"torchvision:Country211:{tmp_path}")[:].x.shape == (6, 3, 32, 32)


@pytest.mark.skipif(not loads("torchvision"), reason="torchvision is not installed")
def test_what_torchvision_has_not_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="torchvision has no data set 'GTSRBB': did you mean GTSRB"):
        source_of("torchvision:GTSRBB").load()
    with pytest.raises(UserError, match=r"torchvision:GTSRB cannot be had .*torchvision:GTSRB:DIR"):
        source_of(f"torchvision:GTSRB:{tmp_path}").load()


@pytest.mark.skipif(not loads("datasets"), reason="datasets is not installed")
def test_a_set_of_the_hub_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    pictures(tmp_path / "mine", ("train", "validation"))
    source = source_of(f"hf:{tmp_path / 'mine'}+size=8")
    assert source == HubData(str(tmp_path / "mine"), 8)
    train, test = source.load()
    assert train.classes == ("ant", "bee")
    assert train.x.shape == test.x.shape == (6, 3, 8, 8)
    assert sorted(test.y.tolist()) == [0, 0, 0, 1, 1, 1]
    with pytest.raises(UserError, match="hf:org/gone cannot be had"):
        source_of("hf:org/gone").load()


def test_a_set_needs_a_name_and_its_library(monkeypatch):
    with pytest.raises(UserError, match="torchvision needs the name of a data set: write torchvision:GTSRB"):
        source_of("torchvision")
    with pytest.raises(UserError, match="hf needs the name of a data set: write hf:org/name"):
        source_of("hf:")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"comes from datasets, which .*: pip install 'sparring\[hub\]'"):
        source_of("hf:org/name").load()
