"""Training objectives, one file per method: the loss of the attack and the loss of the update."""

from .acl import ACL
from .adaad import AdaAD
from .ard import ARD
from .atta import ATTA
from .batch_norm_statistics import BatchNormStatistics
from .consistency import Consistency
from .contrastive import ContrastiveAT, ContrastivePretraining, KNNContrastiveAT
from .contrasts import InfoNCE, Multiscale, NTXent
from .cross_entropy import CrossEntropy
from .dual_teacher import DualTeacher
from .elle import ELLE
from .extreme_norms import EAT
from .fare import FARE
from .fat_trades import FATTRADES
from .gat import GAT
from .gaussian_noise import GaussianNoise
from .grad_align import GradAlign
from .hat import HAT
from .ikl import IKL
from .instance_discrimination import InstanceDiscrimination
from .lbgat import LBGAT
from .logit_pairing import LogitPairing
from .mail import MAILAT, MAILTRADES
from .mart import MART
from .mix_up import MixUp
from .mlcat import MLCAT
from .nuat import NuAT
from .prior_guided import FGSMMEP
from .regularizers import Regularizer, Staged, Sum
from .rocl import RoCL
from .rslad import RSLAD
from .score import SCORE
from .tdat import TDAT
from .temporal_ensembling import TemporalEnsembling
from .trades import TRADES

__all__ = [
    "ACL",
    "ARD",
    "ATTA",
    "EAT",
    "ELLE",
    "FARE",
    "FATTRADES",
    "FGSMMEP",
    "GAT",
    "HAT",
    "IKL",
    "LBGAT",
    "MAILAT",
    "MAILTRADES",
    "MART",
    "MLCAT",
    "RSLAD",
    "SCORE",
    "TDAT",
    "TRADES",
    "AdaAD",
    "BatchNormStatistics",
    "Consistency",
    "ContrastiveAT",
    "ContrastivePretraining",
    "CrossEntropy",
    "DualTeacher",
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
