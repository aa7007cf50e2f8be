"""A training process is killed with SIGKILL, again and again, at moments that nobody chose."""

import multiprocessing
import random
import signal
import time
from dataclasses import replace

import pytest
from forked import ended, started
from helpers import bits, demanding

from sparring import fit
from sparring.training import Saving

pytestmark = pytest.mark.slow

KILLS = 10


def train(recipe, folder, told):
    told.send("begins")
    fit(recipe, folder, saving=Saving(steps=1), on_progress=lambda news: told.send("stepped"))


def test_a_run_that_was_killed_10_times_ends_with_the_same_bits(tiny, tmp_path):
    """Every other one is killed at a random moment after its start, the others at one after some steps.

    A checkpoint follows every step, so many kills hit the middle of a write.
    """
    recipe = replace(demanding(tiny), model=tiny.model, epochs=10, batch_size=30)
    whole, folder, reached = fit(recipe, tmp_path / "whole"), tmp_path / "killed", []
    for number in range(KILLS):
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = started(train, recipe, folder, theirs)
        theirs.close()
        for word in ("begins", *(number % 2 * random.randint(1, 4) * ["stepped"])):
            assert ours.recv() == word
        time.sleep(random.uniform(0, 0.15))
        process.kill()
        assert ended(process) == -signal.SIGKILL, f"the run ended by itself before kill {number}"
        reached.append(max((path.name for path in folder.glob("checkpoints/step-*")), default="none"))
    assert len(set(reached)) >= 3, f"the kills hit different moments of training, but they hit {reached}"
    killed = fit(recipe, folder)
    for which in ("best", "last"):
        assert bits(killed, which) == bits(whole, which)
    assert killed.metrics() == whole.metrics()
    assert killed.status() == whole.status()
    assert (folder / "environment.json").exists()
