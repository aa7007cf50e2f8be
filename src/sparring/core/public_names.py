"""Public names that a recipe on disk may contain, by the module that defines them. Needs no torch.

Files come from other people: a name that is not listed is neither written nor read. Files contain the bare name, so a
class may move to another module and old files can still be read; each name is listed once.
"""

import ast
from collections.abc import Mapping
from pathlib import Path

FORMAT = 2
"""Version of the format of recipes, and so of run folders, weights files and states of evaluations.

Format 1 contained module names too ("attacks.gradient:PGD"). If names or fields change that old files contain, the
number must be increased.
"""

WRITTEN_BY = {1: "0.1"}
"""Versions of sparring that wrote and read older formats."""


def _objectives() -> dict[str, tuple[str, ...]]:
    """Return the objectives that their package imports, by module, so that a method is a file and an import."""
    source = (Path(__file__).parent.parent / "objectives" / "__init__.py").read_text(encoding="utf-8")
    imports = [each for each in ast.parse(source).body if isinstance(each, ast.ImportFrom)]
    names = {f"objectives.{each.module}": tuple(name.name for name in each.names) for each in imports}
    return {module: tuple(name for name in held if name != "Regularizer") for module, held in names.items()}


VALUES: Mapping[str, tuple[str, ...]] = {
    **_objectives(),
    "training.example_history": ("ExampleHistory",),
    "attacks.apgd": ("APGD",),
    "attacks.compose": ("CoarseToFine", "Highest", "PerView", "Restarts", "Split", "Worst"),
    "attacks.fab": ("FAB",),
    "attacks.hop_skip_jump": ("HopSkipJump",),
    "attacks.pgd": ("PGD", "RandomStart", "Benign", "CleanStart", "GaussianStart", "SphereStart", "MixedStart"),
    "attacks.minimum_norm": ("CWL2", "DDN"),
    "attacks.image_prior": ("ParametrizedSearch",),
    "attacks.single_step": ("MultiGrad", "NFGSM", "SignStart", "ZeroGrad"),
    "attacks.square": ("Square",),
    "attacks.random_eps": ("RandomEps",),
    "training.averaging": ("EMA", "SWA"),
    "data.given": ("GivenData",),
    "runs.given": ("GivenModel",),
    "data.mapped": ("GeneratedImages", "MappedArrays"),
    "data.libraries": ("HubData", "TorchvisionData"),
    "data.adapt": ("ClassSubset", "InvertedImages", "Resized", "Rotated"),
    "data.augment": ("Crop", "Cutout", "Flip", "Grey", "Jitter", "ResizedCrop"),
    "data.extra": ("ExtraData",),
    "data.mixing": ("CutMix", "InputMixup", "RandomChoice", "SmoothedLabels"),
    "core.teachers": ("Teacher",),
    "data.auto_augment": ("AutoAugment", "RandAugment"),
    "data.gaussian_mixtures": ("GaussianMixtureImages",),
    "data.corruptions": ("CorruptedImages",),
    "data.image_size": ("ProgressiveResizing",),
    "data.alterations": ("DifficultySubset", "LabelNoise", "PixelNoise"),
    "data.sources": (
        *("CIFAR10", "CIFAR100", "Digits", "FashionMNIST", "Subset", "ImageFolder", "ImageStream", "KMNIST", "MNIST"),
        *("NPZ", "STL10", "SVHN"),
    ),
    "training.engine": ("Method",),
    "evaluation.adversaries": ("MultiTargeted", "SurrogateGradient", "WhiteBox"),
    "evaluation.auto_attack": ("AutoAttack", "Ensemble"),
    "evaluation.minimum_norm": ("MinimumNorm",),
    "evaluation.transfer": ("Transfer",),
    "evaluation.neighbours": ("ProbeTransfer", "FeatureAttack", "PGDkNN", "KNNVoteAttack", "KNNAttackSuite"),
    "training.free": ("Free",),
    "training.guard": ("Guard",),
    "models.surrogate_gradients": ("SmoothBackward",),
    "training.optimizers": ("LAMB", "LARS", "RMSProp", "SGD", "Adam", "AdamW"),
    "runs.recipe": ("Evaluation", "Recipe"),
    "core.schedules": (
        "Cosine",
        "Cycle",
        "Cyclic",
        "EpsWarmUp",
        "ExponentialDecay",
        "Linear",
        "PiecewiseConstant",
        "MultiStep",
        "Ramp",
        "Triangle",
        "WarmUp",
    ),
    "attacks.threats": ("L1", "L2", "Linf"),
    "attacks.union": ("MSD", "Union"),
    "training.flatness": ("ASAM", "RWP", "SAM"),
    "training.updates": ("OptimizerStep", "AWP"),
    "core.modes": ("ComposedMode",),
}
"""Dataclasses, written as `{"$": name, ..}` with their fields."""

CALLS: Mapping[str, tuple[str, ...]] = {
    "models.deepmind": ("dm_preact_resnet18", "dm_wide_resnet", "ra_wide_resnet"),
    "models.encoders": ("amdim", "contrastive_encoder"),
    "models.imagenet": ("efficientnet", "imagenet_resnet"),
    "models.libraries": ("hub_model", "timm_model", "torchvision_model"),
    "models.resnet": ("preact_resnet18", "resnet18", "resnet50"),
    "models.small_cnn": ("small_cnn",),
    "models.timm_small": ("conv_stem",),
    "models.wide_resnet": ("robust_wide_resnet", "wide_resnet"),
    "models.zero_shot": ("zero_shot_model",),
}
"""Functions that build a model, written as `{"$call": name, ..}` with their options."""

NAMES: Mapping[str, tuple[str, ...]] = {
    "attacks.losses": ("DLR", "Margin", "TargetedCE", "TargetedDLR", "CE"),
    "core.modes": ("batch_statistics", "eval_mode", "frozen", "statistics_kept", "train_mode", "unchanged"),
}
"""Losses of attacks and model modes, written as `{"$name": name}` and used without a call."""
