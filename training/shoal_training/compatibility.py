"""The one table of what can be trained: family x objective x method.

It refuses specs at submit time, makes the table in the docs (`python -m shoal_training.compatibility`) and drives the
test matrix. The registries `families`, `objectives` and `methods` hold the code behind each word. No torch here.
"""

from __future__ import annotations

import sys

ENCODER, DECODER = "encoder", "decoder"
SEQUENCE_CLASSIFICATION, CAUSAL_LM = "sequence_classification", "causal_lm"

FAMILIES = (ENCODER, DECODER)
OBJECTIVES = (SEQUENCE_CLASSIFICATION, CAUSAL_LM)
METHODS = ("full", "lora")

# (family, objective) -> methods
TABLE: dict[tuple[str, str], tuple[str, ...]] = {
    (ENCODER, SEQUENCE_CLASSIFICATION): ("full", "lora"),
    (DECODER, CAUSAL_LM): ("full", "lora"),
}


def why_not(family: str, objective: str, method: str) -> str | None:
    """What is wrong with a combination, or None when it can be trained."""
    methods = TABLE.get((family, objective))
    if methods is None:
        able = [other for other in OBJECTIVES if (family, other) in TABLE]
        return f"{objective} cannot be trained on family {family}; it allows: {', '.join(able)}"
    if method not in methods:
        return f"method {method} cannot train {objective} on family {family}; allowed: {', '.join(methods)}"
    return None


def as_markdown() -> str:
    """The table as the docs show it."""
    lines = [f"| family | objective | {' | '.join(METHODS)} |", f"|---|---|{'---|' * len(METHODS)}"]
    for family in FAMILIES:
        for objective in OBJECTIVES:
            methods = TABLE.get((family, objective), ())
            marks = ["yes" if method in methods else "-" for method in METHODS]
            lines.append(f"| {family} | {objective} | {' | '.join(marks)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
