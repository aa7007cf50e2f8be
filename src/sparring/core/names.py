"""Public names that may stand in a recipe on disk, by the module that holds them. Needs no torch.

Files come from other people: a name that is not listed is neither written nor read. On disk a name stands alone, so a
class may move to another module and old files still name it; each name is listed once.
"""

from collections.abc import Mapping

FORMAT = 2
"""Version of the format of recipes, and so of run folders, weights files and states of evaluations.

Format 1 named modules too ("attacks.gradient:PGD"). A change of names or fields that old files hold raises the number.
"""

WRITTEN_BY = {1: "0.1"}
"""Versions of sparring that wrote, and read, former formats."""

VALUES: Mapping[str, tuple[str, ...]] = {
    "training.example_history": ("Remember",),
    "attacks.apgd": ("APGD",),
    "attacks.compose": ("Refined", "Restarts", "Split", "Worst"),
    "attacks.fab": ("FAB",),
    "attacks.pgd": ("PGD", "Anywhere", "Benign", "Near", "Shell", "Sometimes"),
    "attacks.minimum_norm": ("CWL2", "DDN"),
    "attacks.image_prior": ("Painted",),
    "attacks.single_step": ("MultiGrad", "NFGSM", "ZeroGrad"),
    "attacks.square": ("Square",),
    "attacks.random_eps": ("VariedEps",),
    "training.averaging": ("EMA", "SWA"),
    "data.adapt": ("Classes", "Inverted", "Resized", "Rotated"),
    "data.augment": ("Crop", "Cutout", "Flip", "Grey", "Jitter", "ResizedCrop"),
    "data.relabel": ("Kept", "LabelNoise", "PixelNoise"),
    "data.sources": (
        *("CIFAR10", "CIFAR100", "Digits", "FashionMNIST", "Few", "ImageFolder", "ImageStream", "KMNIST", "MNIST"),
        *("NPZ", "STL10", "SVHN"),
    ),
    "training.engine": ("Method",),
    "evaluation.adversaries": ("EachTarget", "Through", "WhiteBox"),
    "evaluation.auto_attack": ("AutoAttack", "InTurn"),
    "evaluation.minimum_norm": ("Nearest",),
    "evaluation.neighbours": ("ByProbe", "OnFeatures", "OnGuides", "OnVotes", "WorstOnNeighbours"),
    "training.free": ("Free",),
    "training.guard": ("Guard",),
    "models.surgery": ("SmoothBackward",),
    "objectives.acl": ("ACL",),
    "objectives.regularizers": ("Staged", "Sum"),
    "objectives.consistency": ("Consistency",),
    "objectives.contrastive": ("Contrastive", "InfoNCE", "Multiscale", "NTXent"),
    "objectives.cross_entropy": ("CrossEntropy",),
    "objectives.grad_align": ("GradAlign",),
    "objectives.instance_discrimination": ("InstanceDiscrimination",),
    "objectives.mart": ("MART",),
    "objectives.mix_up": ("MixUp",),
    "objectives.logit_pairing": ("LogitPairing",),
    "objectives.rocl": ("RoCL",),
    "objectives.batch_norm_statistics": ("Statistics",),
    "objectives.temporal_ensembling": ("TemporalEnsembling",),
    "objectives.trades": ("TRADES",),
    "training.optimizers": ("SGD", "Adam", "AdamW"),
    "runs.recipe": ("Evaluation", "Recipe"),
    "core.schedules": (
        "Cosine",
        "Cycle",
        "Cyclic",
        "EpsWarmUp",
        "Linear",
        "Phases",
        "Piecewise",
        "Ramp",
        "Triangle",
        "WarmUp",
    ),
    "attacks.threats": ("L1", "L2", "Linf"),
    "training.updates": ("Descend", "WeightPerturbed"),
    "core.modes": ("Together",),
}
"""Dataclasses, written as `{"$": name, ..}` with their fields."""

CALLS: Mapping[str, tuple[str, ...]] = {
    "models.encoders": ("amdim", "represented"),
    "models.imagenet": ("efficientnet", "imagenet_resnet"),
    "models.resnet": ("preact_resnet18", "resnet18"),
    "models.small_cnn": ("small_cnn",),
    "models.wide_resnet": ("wide_resnet",),
}
"""Functions that build a model, written as `{"$call": name, ..}` with their options."""

NAMES: Mapping[str, tuple[str, ...]] = {
    "attacks.losses": ("DLR", "Margin", "Targeted", "TargetedDLR", "Untargeted"),
    "core.modes": ("batch_statistics", "eval_mode", "frozen", "statistics_kept", "train_mode", "unchanged"),
}
"""Point losses and views, written as `{"$name": name}` and handed over as they are."""
