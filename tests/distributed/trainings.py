"""Trainings of a few steps in double precision, by one process or several: what the tests of processes compare."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import sparring as sp
from sparring import (
    FGSM,
    L2,
    PGD,
    Build,
    Classifier,
    CrossEntropy,
    GaussianStart,
    Linf,
    Method,
    State,
    Sum,
    TensorData,
    TrainingLoop,
)
from sparring.acceleration import OriginalModel
from sparring.attacks import MSD, Highest, MixedStart, PerView, RandomEps, RandomStart, SignStart, Split, Union
from sparring.core import ranks
from sparring.core.rng import make_rng
from sparring.core.teachers import Teacher
from sparring.core.types import Objective
from sparring.core.walk import walk
from sparring.data import Batches, Crop, CutMix, Cutout, Flip, InputMixup, SmoothedLabels
from sparring.models import KNN, amdim, encode_bank, small_cnn
from sparring.objectives import (
    ACL,
    ARD,
    ATTA,
    EAT,
    ELLE,
    FARE,
    FATTRADES,
    FGSMMEP,
    GAT,
    HAT,
    IKL,
    LBGAT,
    MAILAT,
    MAILTRADES,
    MART,
    MLCAT,
    RSLAD,
    SCORE,
    TDAT,
    TRADES,
    AdaAD,
    BatchNormStatistics,
    Consistency,
    ContrastiveAT,
    ContrastivePretraining,
    DualTeacher,
    GaussianNoise,
    GradAlign,
    InfoNCE,
    InstanceDiscrimination,
    KNNContrastiveAT,
    MixUp,
    Multiscale,
    NTXent,
    NuAT,
    RoCL,
    TemporalEnsembling,
)
from sparring.training import EMA, SGD, SWA, Free

BALL = Linf(0.1)
SHORT = PGD(BALL, steps=2, step_size=0.05)
GAUSSIAN = PGD(BALL, 2, 0.05, GaussianStart())
NORMS = (SHORT, PGD(L2(0.5), 2), PGD(sp.L1(3.0), 2))
with torch.random.fork_rng(devices=[]):
    torch.manual_seed(1)
    TEACHER = Teacher.of(small_cnn(4, (3, 8, 8), width=4, hidden=False).double())


def double_cnn(num_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """A second net, in double precision."""
    return small_cnn(num_classes, shape, width=2, batch_norm=True).double()


@dataclass(frozen=True)
class Training:
    """A training of 2 epochs of 2 steps."""

    method: Any
    update: Any = sp.OptimizerStep()  # noqa: RUF009
    net: str = "batch norm"
    views: int = 1
    averaging: Any = None
    augment: tuple[Any, ...] = ()
    optimizer: Any = SGD(decay_vectors=False)  # noqa: RUF009
    accumulate: int = 1
    local_batch_norm: bool = False


def at(objective: Any, attack: Any = SHORT, **more: Any) -> Training:
    modes = {name: more.pop(name) for name in ("inner_mode", "outer_mode") if name in more}
    return Training(Method(attack, objective, **modes), **more)


TRAININGS = {
    "cross-entropy": at(CrossEntropy(label_smoothing=0.1, clean=0.5), net="plain"),
    "clipping": at(CrossEntropy(), update=sp.OptimizerStep(0.05), net="plain"),
    "trades": at(TRADES(), GAUSSIAN),
    "mart": at(MART(), GAUSSIAN),
    "hat": at(HAT(TEACHER), GAUSSIAN),
    "ard": at(ARD(TEACHER, share=0.9)),
    "adaad": at(AdaAD(TEACHER, share=0.9), GAUSSIAN),
    "rslad": at(RSLAD(TEACHER), GAUSSIAN),
    "fare": at(FARE(TEACHER)),
    "ikl": at(IKL(attack_beta=1.0), GAUSSIAN),
    "lbgat": at(LBGAT(Build(double_cnn)), GAUSSIAN),
    "score": at(SCORE()),
    "mail-at": at(MAILAT(), GAUSSIAN),
    "mail-trades": at(MAILTRADES(), GAUSSIAN),
    "fat-trades": at(FATTRADES(), replace(GAUSSIAN, patience=0)),
    "mlcat": at(MLCAT(1.3)),
    "two teachers": at(DualTeacher(TEACHER, TEACHER)),
    "awp": at(TRADES(), GAUSSIAN, update=sp.AWP(0.01), net="plain"),
    "awp, batch norm": at(CrossEntropy(), update=sp.AWP(0.01)),
    "sam": at(CrossEntropy(), update=sp.SAM()),
    "asam": at(CrossEntropy(), update=sp.ASAM()),
    "rwp": at(CrossEntropy(), update=sp.RWP()),
    "pairing": at(Sum((CrossEntropy(clean=0.5), sp.LogitPairing()))),
    "consistency": at(Sum((CrossEntropy(), Consistency())), views=2, augment=(Crop(1), Flip(), Cutout(3))),
    "mixup": at(MixUp(), sp.Benign()),
    "gaussian noise": at(GaussianNoise(0.25), sp.Benign()),
    "grad-align": at(Sum((CrossEntropy(), GradAlign(BALL))), FGSM(BALL)),
    "ensembling": at(Sum((CrossEntropy(), TemporalEnsembling(3.0)))),
    "statistics": at(BatchNormStatistics(CrossEntropy(), "both")),
    "pre-training": at(ContrastivePretraining(NTXent()), sp.Benign(), views=2, augment=(Crop(1),)),
    "multiscale": at(
        ContrastivePretraining(Multiscale(regularise=0.05)), SHORT, net="amdim", views=2, augment=(Crop(1),)
    ),
    "contrastive": at(ContrastiveAT(InfoNCE())),
    "contrastive, views": at(ContrastiveAT(InfoNCE(), "distance"), views=2, augment=(Crop(1),)),
    # the loss of guides has kinks at the distances of neighbours, where rounding decides the gradient
    "neighbours": at(KNNContrastiveAT(maximizes="vote", labels="bank", refresh=2), net="neighbours"),
    "instances": at(InstanceDiscrimination(negatives=7)),
    "rocl": at(RoCL(), sp.Benign(), views=2, augment=(Crop(1),)),
    "acl": at(ACL(), sp.Benign(), views=2, augment=(Crop(1),)),
    "free": Training(Free(BALL, 3)),
    "random eps": at(CrossEntropy(), RandomEps(SHORT)),
    "random eps of examples": at(CrossEntropy(), RandomEps(SHORT, "example", alpha=2.0)),
    "mixed start": at(CrossEntropy(), replace(SHORT, start=MixedStart(RandomStart(), 0.5))),
    "split": at(CrossEntropy(), Split(((0.5, SHORT), (0.5, FGSM(BALL, 0.125, RandomStart()))))),
    "patience": at(CrossEntropy(), replace(SHORT, patience=0)),
    "restarts": at(CrossEntropy(), sp.Restarts(SHORT, 2)),
    "n-fgsm": at(CrossEntropy(), sp.attacks.NFGSM(BALL)),
    "fgsm-mep": at(FGSMMEP(BALL, reset=2), FGSM(BALL), views=2, augment=(Crop(1),)),
    "atta": at(Sum((CrossEntropy(), ATTA(2))), augment=(Crop(1), Flip())),
    "elle-a": at(Sum((CrossEntropy(), ELLE(BALL, 9.0, adaptive=True, sensitivity=0.1))), FGSM(BALL)),
    "gat": at(GAT(), FGSM(BALL, start=SignStart(0.5))),
    "nuat": at(NuAT(last=0), FGSM(BALL, start=SignStart(0.5))),
    "tdat": at(TDAT(BALL), FGSM(BALL)),
    "max": at(CrossEntropy(), Highest(NORMS)),
    "avg": at(CrossEntropy(), PerView(NORMS), views=3, augment=(Crop(1),)),
    "msd": at(CrossEntropy(), MSD(Union(tuple(each.threat for each in NORMS)), 2)),
    "e-at": at(Sum((CrossEntropy(), EAT())), Split(((0.5, NORMS[0]), (0.5, NORMS[2])))),
    "l2": at(CrossEntropy(), PGD(L2(0.5), 2)),
    "training mode": at(CrossEntropy(), inner_mode=sp.train_mode),
    "training mode, patience": at(CrossEntropy(), replace(SHORT, steps=4, patience=0), inner_mode=sp.train_mode),
    "swa": at(CrossEntropy(), averaging=SWA(0)),
    "ema": at(CrossEntropy(), averaging=EMA(0.9), augment=(sp.data.Jitter(), sp.data.ResizedCrop(), sp.data.Grey(0.5))),
    "cutmix": at(TRADES(), GAUSSIAN, augment=(Flip(), CutMix(), SmoothedLabels(0.1))),
    "mixed before the attack": at(CrossEntropy(), augment=(InputMixup(0.4),)),
    "accumulated": at(TRADES(), GAUSSIAN, net="plain", accumulate=2),
    "accumulated awp": at(CrossEntropy(), update=sp.AWP(0.01), net="plain", accumulate=3),
    "local batch norm": at(CrossEntropy(), local_batch_norm=True),
}


def data(count: int = 22) -> TensorData:
    x = (torch.rand(count, 3, 8, 8, generator=make_rng(1)) * 255).to(torch.uint8)
    return TensorData(x, torch.arange(count) % 4, ("a", "b", "c", "d"))


class InDouble(nn.Module):
    """Takes images in float32 too, as banks of features are encoded."""

    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def net(kind: str) -> Classifier:
    torch.manual_seed(0)
    if kind == "amdim":
        model = amdim(4, (3, 32, 32), width=4, depth=1)
    else:
        model = small_cnn(4, (3, 8, 8), width=4, batch_norm=kind != "plain", hidden=False)
    return Classifier(model.body, KNN(4, k=3) if kind in ("amdim", "neighbours") else model.head)


class Double:
    """Batches in double precision."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def rest_of_epoch(self, step: int) -> Any:
        for batch in self.batches.rest_of_epoch(step):
            yield replace(batch, x=batch.x.double())


def begun(training: Training, size: int = 11) -> tuple[State, TrainingLoop, Double]:
    images = data()
    if training.net == "amdim":
        images = TensorData(torch.nn.functional.interpolate(images.x.float(), 32).byte(), images.y, images.classes)
    model = net(training.net).double().train()
    model.normalize = InDouble()
    if training.net in ("neighbours", "amdim"):
        encode_bank(model, images)
    state = State.start(training.method, model, training.optimizer.build(model), images, seed=3)
    state.local_batch_norm = training.local_batch_norm
    objective = getattr(training.method, "objective", None)
    places = any(each.needs_places for each in walk(objective) if isinstance(each, Objective))
    batches = Batches(images, size, training.augment, 3, training.views, True, training.accumulate, places=places)
    loop = TrainingLoop(2, 0.05, training.update, training.averaging, backend=OriginalModel())
    return state, loop, Double(batches)


COLLECTIVES = ("all_reduce", "all_gather", "broadcast", "all_gather_object", "broadcast_object_list")


def trained(name: str) -> dict[str, Any]:
    """Train, and return weights, statistics, memory, terms, and what the third step communicates."""
    training = TRAININGS[name]
    state, loop, batches = begun(training)
    loop.run(training.method, state, batches, until=2)
    calls, numbers = Counter[str](), 0
    kept = {each: getattr(dist, each) for each in COLLECTIVES}

    def counting(name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal numbers
            calls.update([name])
            numbers += args[0].numel() if name == "all_reduce" else 0
            return kept[name](*args, **options)

        return call

    for each in kept:
        setattr(dist, each, counting(each))
    loop.run(training.method, state, batches, until=3)
    for each, call in kept.items():
        setattr(dist, each, call)
    loop.run(training.method, state, batches)
    modules = [t for module in state.modules().values() for t in module.state_dict().values()]
    return {
        "weights": flat(modules),
        "memory": flat(state.memory.state_dict().values()),
        "terms": dict(state.latest),
        "collectives": dict(calls),
        "numbers": numbers,
        "trained": sum(p.numel() for p in state.model.parameters()),
        "tensors": len(list(state.model.parameters())),
    }


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.detach().double().flatten() for t in tensors] or [torch.zeros(0)])


def main(rank: int, world: int, store: str, out: str, *names: str) -> None:
    """Train as one of several processes."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    found = {name: trained(name) for name in names or TRAININGS}
    for each in found.values():
        each["apart"] = max(float((other - each["weights"]).abs().max()) for other in ranks.each_of(each["weights"]))
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()
