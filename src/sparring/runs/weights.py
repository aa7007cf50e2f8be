"""The weights files of a run."""

import math
from dataclasses import dataclass

from ..core import ranks
from ..core.types import LabelledData
from ..records.run_folder import RunFolder
from ..training.checkpoint import read_weights, save_weights
from ..training.engine import State
from .recipe import Recipe


@dataclass(frozen=True, slots=True)
class RunWeights:
    """Writes the weights of a run, together with the recipe, the classes and the image shape of its model."""

    run: RunFolder
    recipe: Recipe
    train: LabelledData

    def write(self, which: str, state: State) -> None:
        """Write the best or the last weights, on the first process alone."""
        if not self.run.writes:
            return
        about = {
            "recipe": self.recipe.plain(),
            "step": state.step,
            "classes": self.train.classes,
            "shape": self.train.shape,
        }
        save_weights(self.run.weights(which), state.evaluated, about)

    def write_best(self, state: State) -> None:
        self.write("best", state)

    def write_best_if_due(self, state: State) -> None:
        """Write the best weights if the present step is the best one."""
        if state.best.get("step") == state.step:
            self.write_best(state)

    def reconcile_best(self, state: State) -> None:
        """Make the file of the best weights consistent with a state from which training continues."""
        if state.best.get("step") == state.step:  # the process may have died before it wrote them
            self.write_best(state)
        else:
            self.forget_later_best(state)

    def forget_later_best(self, state: State) -> None:
        """Delete best weights of a later step: after going back, training may not reach that step again."""
        path = self.run.weights("best")

        def left() -> bool:
            if path.exists() and read_weights(path)[1].get("step", math.inf) > state.step:
                path.unlink()
            return path.exists()

        if not ranks.from_first(left):
            state.best = {}
