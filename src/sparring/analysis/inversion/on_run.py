"""The inversion analysis of runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.errors import UserError
from ...core.rng import PerExample, make_rng
from ...core.types import pixels
from ...core.writing import replacing, write_json
from ...models import Layers
from ...records.results import Array
from ...records.run_folder import RunFolder
from ..information.plot import plot_features, plot_inversions
from ..runs import AnalyzedModel, open_last, open_run
from ..transfer.on_run import task_for
from .measure import Inversion, Inverter, beginning, interpolate, measure_inversion, searches, visualize_features

INSIDE = "its own test images"


@dataclass(frozen=True, slots=True)
class InversionAnalysis:
    """Inversions by source of the images, with pictures: images of maximised features, and interpolations."""

    found: Mapping[str, Inversion]
    features: Array | None
    between: Array | None

    def plain(self) -> dict[str, Any]:
        notes = list(dict.fromkeys(note for each in self.found.values() for note in each.notes))
        images = {where: each.plain() for where, each in self.found.items()}
        return {"images": images, **({"notes": notes} if notes else {})}

    def arrays(self) -> dict[str, Array]:
        """Return the measures of each image, and the images as bytes."""
        found = {f"{where}: {name}": values for where, one in self.found.items() for name, values in one.values.items()}
        both = (("originals", "originals"), ("rebuilt", "images"))
        return found | {
            f"{where}: {name}": np.round(255 * getattr(one, field)).astype(np.uint8)
            for where, one in self.found.items()
            for name, field in both
        }


def how_to_invert(subject: AnalyzedModel, search: str, steps: int, layers: Sequence[str], smooth: float) -> Inverter:
    """Return the settings that the options of the command line stand for."""
    shape = subject.training.data.shape
    return Inverter(tuple(layers), search=searches(shape, steps)[search], smooth=smooth)


def analyze_inversion(
    subject: AnalyzedModel,
    how: Inverter,
    *,
    elsewhere: Sequence[str] = (),
    resize: bool = False,
    examples: int = 64,
    judge: torch.nn.Module | None = None,
    features: int = 0,
    batch_size: int = 64,
    seed: int = 0,
) -> InversionAnalysis:
    """Invert the model on the first test images of its own task, and of the tasks `elsewhere`.

    With `features`, that many numbers of the first layer are maximised, starting from grey, and two pairs of images
    interpolated.
    """
    raised, between = _for_people(subject, how, features, seed) if features else (None, None)
    places = {INSIDE: subject.test[:examples]}
    places |= {spec: task_for(subject, spec, resize, examples)[1] for spec in elsewhere}
    given: dict[str, Any] = {"judge": judge, "batch_size": batch_size, "seed": seed}
    found = {where: measure_inversion(subject.model, data, how, **given) for where, data in places.items()}
    return InversionAnalysis(found, raised, between)


def _for_people(subject: AnalyzedModel, how: Inverter, features: int, seed: int) -> tuple[Array, Array]:
    """Return images of randomly chosen features, and interpolations of two pairs of images in five steps."""
    x = pixels(subject.test.x[:4])
    with torch.no_grad():
        many = Layers(subject.model, how.layers).first(x[:1]).numel()
    if features > many or len(x) < 4:
        raise UserError(
            f"features = {features} needs a layer of at least as many numbers and 4 test images; the layer has {many} "
            f"numbers, and there are {len(x)} images"
        )
    chosen = torch.randperm(many, generator=make_rng(seed))[:features].to(x.device)
    like = x[:1].expand(len(chosen), -1, -1, -1)
    start = beginning(like, PerExample(seed, torch.arange(len(chosen), device=x.device)))
    raised = visualize_features(subject.model, chosen, start, how, seed=seed)
    half = len(x) // 2
    between = interpolate(subject.model, x[:half], x[half : 2 * half], np.linspace(0, 1, 5).tolist(), how, seed=seed)
    return raised.cpu().numpy(), between.cpu().numpy()


def write_inversion(
    run: RunFolder, found: Sequence[tuple[str, InversionAnalysis]], how: Mapping[str, Any], pictures: int = 8
) -> None:
    """Write `analysis-inversion.npz`, `.png`, with features `analysis-inversion-features.png`, and, last, `.json`."""
    first = found[0][1]
    with replacing(run.analysis("inversion", "npz")) as file:
        np.savez_compressed(file, **first.arrays())  # type: ignore[arg-type]
    rows = [
        (where, each.originals[:pictures], [(name, other.found[where].images[:pictures]) for name, other in found])
        for where, each in first.found.items()
    ]
    if pictures:
        plot_inversions(rows, run.analysis("inversion", "png"))
    shown = [(name, each.features, each.between) for name, each in found]
    drawn = [(name, a, b) for name, a, b in shown if a is not None and b is not None]
    if drawn:
        plot_features(drawn, run.analysis("inversion-features", "png"))
    write_json(run.analysis("inversion", "json"), {**first.plain(), "how": dict(how)})


def judge_of(path: Path, weights: str, subject: AnalyzedModel) -> torch.nn.Module:
    """Return the model of another run, on the device of the images."""
    return open_run(path, weights, 1, str(subject.test.y.device)).model


def study_inversion(run: RunFolder, device: str, how: Mapping[str, Any]) -> None:
    """Run the analysis of a study after each training: the default inversion of the last weights, here and `elsewhere`.

    The noise is from the seed of the run; no picture is drawn.
    """
    subject, _ = open_last(run, how["examples"], device)
    plain = how_to_invert(subject, "descent", how["steps"], how["layers"], 0.0)
    given = {"elsewhere": how["elsewhere"], "resize": True, "examples": how["examples"], "seed": subject.seed}
    write_inversion(run, [(run.path.name, analyze_inversion(subject, plain, **given))], how, pictures=0)


def study_inversion_jointly(runs: Mapping[str, RunFolder], path: Path, device: str, how: Mapping[str, Any]) -> None:
    """Run the analysis of a study once all trainings of a seed are done, on their last weights.

    Inverts the model `middle` in several ways, by the names of `ways`: another `search`, or number of its `steps`,
    other fields of the `Inverter`, or several `nets`, jointly or `annealing` from the first to the last (with as many
    steps in total). Also measures, for the default inversion of every run, how often the model `judge` predicts the
    same class for the rebuilt image and the original. Writes `path`, and the images to an .npz of the same name.
    """
    nets = {arm: open_last(run, how["examples"], device)[0] for arm, run in runs.items()}
    middle = nets[how["middle"]]
    shape, count = middle.training.data.shape, how["steps"]
    figures, images = {}, {}
    for name, way in how["ways"].items():
        chosen = [nets[arm] for arm in way.get("nets", (how["middle"],))]
        rest: dict[str, Any] = {key: each for key, each in way.items() if key not in ("nets", "search", "annealing")}
        layers = tuple(rest.pop("layers", how["layers"]))
        annealing = way.get("annealing", False)
        steps = rest.pop("steps", count // len(chosen) if annealing else count)
        search = searches(shape, steps)[way.get("search", "descent")]
        found = measure_inversion(
            [each.model for each in chosen],
            middle.test,
            Inverter(layers, search=search, **rest),
            annealing=annealing,
            seed=middle.seed,
        )
        figures[name] = {figure: values.tolist() for figure, values in found.values.items()}
        images[name] = np.round(255 * found.images).astype(np.uint8)
    agreed = {arm: _agreed(nets[how["judge"]], runs[arm]) for arm in runs if arm != how["judge"]}
    with replacing(path.with_suffix(".npz")) as file:
        np.savez_compressed(file, **images)  # type: ignore[arg-type]
    write_json(path, {"ways": figures, "agreement": agreed, "how": dict(how)})


@torch.no_grad()
def _agreed(judge: AnalyzedModel, run: RunFolder) -> float:
    names = [f"{INSIDE}: originals", f"{INSIDE}: rebuilt"]
    held = run.read_images("inversion", *names)
    both = [pixels(torch.from_numpy(held[name]).to(judge.test.y.device)) for name in names]
    classes = [judge.model(x).argmax(1) for x in both]
    return float((classes[0] == classes[1]).double().mean())
