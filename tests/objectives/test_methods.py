"""Every method trains on the digits through `fit`, and goes on bit for bit from where it was interrupted."""

from dataclasses import replace

import pytest
from every_method import CHANGES

from sparring import Build, fit
from sparring.models import small_cnn
from sparring.training import Interrupted

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", CHANGES)
def test_a_method_trains_and_resumes_bit_for_bit_on_digits(name, tiny, tmp_path):
    recipe = replace(tiny, **{"model": Build(small_cnn, width=4, batch_norm=True), **CHANGES[name]})
    whole = fit(recipe, tmp_path / "whole")

    def stop(news):
        if news.progress.step == 7 and news.held_out is None:  # in the middle of the second epoch of five steps
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        fit(recipe, tmp_path / "cut", on_progress=stop)
    cut = fit(recipe, tmp_path / "cut")
    assert cut.weights("last").read_bytes() == whole.weights("last").read_bytes()
    losses = [sum(row["terms"].values()) for row in whole.metrics() if "terms" in row]
    assert losses
    held_out = [row["held_out"] for row in whole.metrics() if "held_out" in row]
    assert len(held_out) == 3
