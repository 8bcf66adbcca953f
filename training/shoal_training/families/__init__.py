"""Registry of model families: how a base is opened for training."""

from __future__ import annotations

from shoal_training.compatibility import DECODER, ENCODER
from shoal_training.families import decoder, encoder
from shoal_training.families.pretrained import Family

FAMILIES: dict[str, Family] = {ENCODER: encoder.FAMILY, DECODER: decoder.FAMILY}
