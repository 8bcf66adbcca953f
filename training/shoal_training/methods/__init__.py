"""Registry of methods: how a built model is changed for training, and back for publication."""

from __future__ import annotations

from shoal_training.methods.full import Full
from shoal_training.methods.interface import Method
from shoal_training.methods.lora import Lora
from shoal_training.spec import FullMethod, LoraMethod


def method_for(settings: FullMethod | LoraMethod) -> Method:
    """The method that a spec's settings ask for."""
    return Lora(settings) if isinstance(settings, LoraMethod) else Full()
