"""Which weights training changes, and training only some of them."""

from guerdon.sparsity.masks import MaskedUpdates, MaskSet, masked_finetune
from guerdon.sparsity.updates import MaskOverlap, Sparsity, mask_overlap, update_rank, update_sparsity

__all__ = [
    "MaskOverlap",
    "MaskSet",
    "MaskedUpdates",
    "Sparsity",
    "mask_overlap",
    "masked_finetune",
    "update_rank",
    "update_sparsity",
]
