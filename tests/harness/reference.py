"""What transformers itself answers: one input at a time, in float32, without any of our execution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NEAR_TIE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedyReference:
    """Greedy continuation of a prompt."""

    token_ids: list[int]  # without the end-of-sequence token
    margins: list[float]  # best minus second-best logit at each step, the end included


class ReferenceClassifier:
    """A classifier folder run plainly."""

    def __init__(self, folder: Path) -> None:
        import torch
        import transformers
        from transformers import AutoConfig, AutoTokenizer

        self._torch = torch
        architecture = getattr(transformers, AutoConfig.from_pretrained(folder).architectures[0])
        self._model = architecture.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def logits(self, *texts: str) -> list[float]:
        """Logits of one text, or of a pair; a list for each token where the head is for tokens."""
        inputs = self._tokenizer(*texts, return_tensors="pt")
        with self._torch.inference_mode():
            return self._model(**inputs).logits[0].tolist()  # type: ignore[no-any-return]


class ReferenceGenerator:
    """A generator folder run plainly."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        eos = self._model.generation_config.eos_token_id
        self.eos_ids = set(eos if isinstance(eos, list) else [eos])

    def greedy(self, prompt_ids: Sequence[int], max_new_tokens: int) -> GreedyReference:
        """`generate` without sampling."""
        prompt = self._torch.tensor([list(prompt_ids)])
        with self._torch.inference_mode():
            out = self._model.generate(
                prompt,
                attention_mask=self._torch.ones_like(prompt),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
                pad_token_id=0,
            )
        new = out.sequences[0, len(prompt_ids) :].tolist()
        margins = [float(best - second) for best, second in (step[0].topk(2).values.tolist() for step in out.logits)]
        return GreedyReference(token_ids=[t for t in new if t not in self.eos_ids], margins=margins)


def differs_at_near_tie(reference: GreedyReference, found: Sequence[int]) -> bool:
    """Whether the first difference lies where the reference's two best logits are closer than NEAR_TIE."""
    pairs = zip(reference.token_ids, found, strict=False)
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(reference.token_ids), len(found)))
    return first < len(reference.margins) and reference.margins[first] < NEAR_TIE
