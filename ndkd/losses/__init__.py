"""Distillation losses: pure functions and the modules that hold their hyper-parameters.

They know no weight, warm-up, logger or trainer, and need nothing but torch.
"""

from ndkd.losses.cosine import CosineLoss, cosine_loss
from ndkd.losses.dist import DISTLoss, dist_loss
from ndkd.losses.dkd import DKDLoss, dkd_loss
from ndkd.losses.infonce import InfoNCELoss, infonce_loss
from ndkd.losses.kd import HardKDLoss, KDLoss, hard_kd_loss, kd_loss
from ndkd.losses.l2 import L2Loss, l2_loss
from ndkd.losses.nd import NDLoss, nd_loss
from ndkd.losses.nkd import NKDLoss, nkd_loss
from ndkd.losses.reviewkd import ReviewKDLoss, hcl_loss
from ndkd.losses.rld import RLDLoss, rld_loss
from ndkd.losses.sifn import SIFNLoss, sifn_loss
from ndkd.losses.ttm import TTMLoss, WTTMLoss, ttm_loss, wttm_loss
from ndkd.losses.wkdf import WKDFLoss, wkdf_loss
