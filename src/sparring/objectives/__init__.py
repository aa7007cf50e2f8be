"""Training objectives, one file per method: the loss of the attack and the loss of the update."""

from .acl import ACL
from .atta import ATTA
from .batch_norm_statistics import BatchNormStatistics
from .consistency import Consistency
from .contrastive import ContrastiveAT, ContrastivePretraining, KNNContrastiveAT
from .contrasts import InfoNCE, Multiscale, NTXent
from .cross_entropy import CrossEntropy
from .elle import ELLE
from .extreme_norms import EAT
from .gat import GAT
from .gaussian_noise import GaussianNoise
from .grad_align import GradAlign
from .instance_discrimination import InstanceDiscrimination
from .logit_pairing import LogitPairing
from .mart import MART
from .mix_up import MixUp
from .nuat import NuAT
from .prior_guided import FGSMMEP
from .regularizers import Regularizer, Staged, Sum
from .rocl import RoCL
from .rslad import RSLAD
from .tdat import TDAT
from .temporal_ensembling import TemporalEnsembling
from .trades import TRADES

__all__ = [
    "ACL",
    "ATTA",
    "EAT",
    "ELLE",
    "FGSMMEP",
    "GAT",
    "MART",
    "RSLAD",
    "TDAT",
    "TRADES",
    "BatchNormStatistics",
    "Consistency",
    "ContrastiveAT",
    "ContrastivePretraining",
    "CrossEntropy",
    "GaussianNoise",
    "GradAlign",
    "InfoNCE",
    "InstanceDiscrimination",
    "KNNContrastiveAT",
    "LogitPairing",
    "MixUp",
    "Multiscale",
    "NTXent",
    "NuAT",
    "Regularizer",
    "RoCL",
    "Staged",
    "Sum",
    "TemporalEnsembling",
]
