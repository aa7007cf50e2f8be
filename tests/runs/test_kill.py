"""A training process is killed with SIGKILL, again and again, at moments that nobody chose."""

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import bits, demanding

from sparring import fit
from sparring.records.run_folder import write_json

pytestmark = pytest.mark.slow

KILLS = 10


def test_a_run_that_was_killed_10_times_ends_with_the_same_bits(tiny, tmp_path):
    """One process imports everything once and forks the trainings.

    Every other one is killed at a random moment after its start, the others at one after their first step. A
    checkpoint follows every step, so many kills hit the middle of a write.
    """
    recipe = replace(demanding(tiny), model=tiny.model, epochs=10, batch_size=100)
    whole = fit(recipe, tmp_path / "whole")
    write_json(tmp_path / "recipe.json", recipe.plain())
    script = f"""
        import os, random, signal, sys, time
        from pathlib import Path
        import torch
        torch.set_num_threads(1)
        import sklearn.datasets, sklearn.model_selection
        from sparring.runs.recipe import recipe_from_plain
        from sparring.records.run_folder import read_json
        from sparring import fit
        from sparring.training import Saving

        recipe = recipe_from_plain(read_json(Path({str(tmp_path / "recipe.json")!r})))
        folder = Path({str(tmp_path / "killed")!r})
        for number in range({KILLS}):
            ours, theirs = os.pipe()
            child = os.fork()
            if child == 0:
                fit(recipe, folder, saving=Saving(steps=1), on_progress=lambda news: os.write(theirs, b"."))
                os._exit(0)
            os.close(theirs)
            if number % 2:
                os.read(ours, 1)
            time.sleep(random.uniform(0, 0.15))
            os.kill(child, signal.SIGKILL)
            os.close(ours)
            if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
                sys.exit(f"the run ended by itself before kill {{number}}")
            newest = sorted((folder / "checkpoints").glob("step-*"))
            print(newest[-1].name if newest else "none", flush=True)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    reached = done.stdout.split()
    assert len(reached) == KILLS
    assert len(set(reached)) >= 3, f"the kills hit different moments of training, but they hit {reached}"
    killed = fit(recipe, tmp_path / "killed")
    for which in ("best", "last"):
        assert bits(killed, which) == bits(whole, which)
    assert killed.metrics() == whole.metrics()
    assert killed.status() == whole.status()
    assert Path(killed.path / "environment.json").exists()
