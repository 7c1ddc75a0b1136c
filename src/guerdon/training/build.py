"""The optimiser that a recipe describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from guerdon.errors import RecipeError
from guerdon.recipe import OptimizerSpec
from guerdon.sparsity.masks import MaskSet, masked_finetune
from guerdon.training.optim import Optimizer, Updates
from guerdon.training.stochastic import NPGIGT


def make_optimizer(spec: OptimizerSpec, parameters: Mapping[str, nn.Parameter]) -> Updates:
    """Build the optimiser of a recipe over trainable weights, under a mask if it names one.

    Raises:
        RecipeError: when the file of the mask cannot be read, or its masks do not fit the weights.
    """
    if spec.name == "npgigt":
        optimizer: Updates = NPGIGT(parameters)
    else:
        optimizer = Optimizer(
            parameters, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay, grad_clip=spec.grad_clip
        )
    if spec.mask is None:
        return optimizer
    if not Path(spec.mask).is_file():
        raise RecipeError(f"optimizer.mask: no file '{spec.mask}'; write one with guerdon.sparsity.MaskSet.save")
    try:
        return masked_finetune(optimizer, MaskSet.load(spec.mask))
    except (SafetensorError, ValueError) as error:
        raise RecipeError(f"optimizer.mask '{spec.mask}': {error}; it must come from a policy like this one") from None
