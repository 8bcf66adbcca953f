"""Registry of objectives: columns to tokens, batches with labels, evaluation."""

from __future__ import annotations

from shoal_training.compatibility import CAUSAL_LM, SEQUENCE_CLASSIFICATION
from shoal_training.objectives.causal_lm import CausalLM
from shoal_training.objectives.interface import Objective
from shoal_training.objectives.sequence_classification import SequenceClassification

OBJECTIVES: dict[str, Objective] = {
    SEQUENCE_CLASSIFICATION: SequenceClassification(),
    CAUSAL_LM: CausalLM(),
}
