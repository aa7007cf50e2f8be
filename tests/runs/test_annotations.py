"""Values of a user's own classes must come back from a recipe on disk, before hours are spent on them."""

from dataclasses import dataclass, field, replace

import pytest

from sparring import CrossEntropy, Method, UserError, fit
from sparring.core.serialization import stored
from sparring.runs.start import check_annotations


@dataclass(frozen=True)
class Sloppy(CrossEntropy):
    strength: float = None


@dataclass(frozen=True)
class Derived(CrossEntropy):
    strength: float = 1.0
    half: float = field(init=False, default=0.5)


def test_a_value_that_its_annotation_forbids_is_refused_before_training(tiny, tmp_path):
    recipe = replace(tiny, method=Method(tiny.method.attack, Sloppy()))
    with pytest.raises(UserError, match=r"Sloppy\.strength is None, wanted is float: .* annotate the field"):
        fit(recipe, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    check_annotations(replace(tiny, method=Method(tiny.method.attack, Sloppy(strength=1.0))))


def test_fields_that_a_constructor_does_not_take_are_not_written():
    assert "half" not in stored(Derived()) and stored(Derived())["strength"] == 1.0
