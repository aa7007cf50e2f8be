from dataclasses import dataclass

from torch import Tensor, nn

from ..core.teachers import ORIGINAL, Teacher, TeacherMemory
from ..core.types import Context, Forward, LabelledData, LossOutput, Objective, PerExampleLoss, Terms


@dataclass(frozen=True, slots=True)
class FARE(Objective):
    """Unsupervised adversarial fine-tuning of an image encoder, whose features shall stay those of the original.

    The loss is the squared distance, summed over the features, between the features of the model at the adversarial
    image and those of the original encoder at the clean image; the attack maximises it. Start the attack at a random
    point, as the distance has no gradient where both are equal. Features are what a `Classifier` gives its head, not
    normalised. The head is not trained, so whatever reads the features of the original reads those of the model: text
    embeddings (`ZeroShotHead`), nearest neighbours or a linear layer. Labels and soft targets are not used.

    Args:
        original: The original encoder; by default the model as it is before the first step.

    References:
        FARE: https://arxiv.org/abs/2402.12336.
    """

    original: Teacher = ORIGINAL

    def init(self, data: LabelledData) -> nn.Module:
        del data
        return self.original.memory()

    def inner(self, ctx: Context) -> PerExampleLoss:
        return self._distance(ctx)

    def outer(self, ctx: Context, x_adv: Tensor) -> Terms:
        return {"distance": self._distance(ctx)(x_adv).value.mean()}

    def _distance(self, ctx: Context) -> "_Distance":
        assert isinstance(ctx.memory, TeacherMemory)
        return _Distance(ctx.lens.features, ctx.memory.features(ctx.batch.x).detach())


@dataclass(frozen=True, slots=True)
class _Distance:
    """Squared distance, summed over the features, of features from given ones `[B, F]`."""

    features: Forward
    original: Tensor

    def __call__(self, x: Tensor) -> LossOutput:
        return LossOutput((self.features(x) - self.original).square().sum(1))

    def __getitem__(self, rows: Tensor) -> "_Distance":
        return _Distance(self.features, self.original[rows])
