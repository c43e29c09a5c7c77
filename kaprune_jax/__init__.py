"""Knowledge-aware pruning of pre-trained text encoders: masks, distillation, and the models they act on."""

from .deploy.folder import load as load
from .deploy.folder import save as save
from .deploy.model import Model as Model
from .deploy.model import Prediction as Prediction
from .distill.losses import attention_loss as attention_loss
from .distill.losses import hidden_loss as hidden_loss
from .distill.losses import kl_loss as kl_loss
from .distill.losses import label_loss as label_loss
from .distill.losses import soft_cross_entropy as soft_cross_entropy
from .distill.matching import match_layers as match_layers
from .distill.objective import DistillConfig as DistillConfig
from .distill.objective import hard_labels_loss as hard_labels_loss
from .distill.objective import init_projection as init_projection
from .distill.objective import logits_loss as logits_loss
from .distill.objective import objective as objective
from .distill.objective import sparsebert_loss as sparsebert_loss
from .prune.magnitude import MagnitudePruningState as MagnitudePruningState
from .prune.magnitude import magnitude_pruning as magnitude_pruning
from .prune.masks import apply_masks as apply_masks
from .prune.masks import mask_moments as mask_moments
from .prune.masks import sparsity as sparsity
from .prune.masks import topk_mask as topk_mask
from .prune.schedules import PruningSchedule as PruningSchedule
from .prune.schedules import cubic as cubic
from .prune.schedules import linear as linear
from .prune.schedules import one_shot as one_shot
