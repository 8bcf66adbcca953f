"""The trained weights of a model on the disk: the parameters that require gradients, by name, bit by bit."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from shoal_training.failures import Diverged

WEIGHTS_NAME = "weights.safetensors"


def save_trained(model: nn.Module, folder: Path) -> None:
    """Write the trained parameters into `folder`; tied ones once."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: parameter.detach().contiguous() for name, parameter in _trained(model)}
    save_file(tensors, folder / WEIGHTS_NAME)


def load_trained(model: nn.Module, folder: Path) -> None:
    """Put back what `save_trained` wrote, into the same kind of model, bit by bit."""
    tensors = load_file(folder / WEIGHTS_NAME)
    names = {name for name, _ in _trained(model)}
    assert names == tensors.keys(), "the checkpoint is of another model"
    with torch.no_grad():
        for name, parameter in _trained(model):
            parameter.copy_(tensors[name])


def check_finite(model: nn.Module) -> None:
    """Raises Diverged unless every trained number is finite."""
    for name, parameter in _trained(model):
        if not bool(torch.isfinite(parameter).all()):
            raise Diverged(f"weights are no longer finite numbers: {name}")


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
