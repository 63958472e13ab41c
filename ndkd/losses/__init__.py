"""Distillation losses: pure functions and the modules that hold their hyper-parameters.

They know no weight, warm-up, logger or trainer, and need nothing but torch.
"""

from ndkd.losses.dist import DISTLoss, dist_loss
from ndkd.losses.dkd import DKDLoss, dkd_loss
from ndkd.losses.embedding import CosineLoss, InfoNCELoss, L2Loss, cosine_loss, infonce_loss, l2_loss
from ndkd.losses.kd import HardKDLoss, KDLoss, hard_kd_loss, kd_loss
from ndkd.losses.nd import NDLoss, nd_loss
from ndkd.losses.norm import SIFNLoss, sifn_loss
from ndkd.losses.reviewkd import ReviewKDLoss, hcl_loss
