"""How `shoal classify` shows what was found: tables and tab-separated lines for people, JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from shoal import types
from shoal.commands.output import excerpt, print_json, print_table
from shoal.errors import RpcError


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line that was sent."""

    text: str  # its beginning, for people
    content: types.ClassifyInput


def print_reply(reply: types.ClassifyResult, lines: Sequence[Line], num_labels: int | None) -> None:
    """A table of the best `num_labels` labels of each input (None: all), or of its spans."""
    title = f"{reply.served_by.model}@{reply.served_by.version}"
    pairs = list(zip(lines, reply, strict=True))
    if reply.head == "token":
        spans = [
            (line.text if place == 0 else "", covered(line.content, span), span.label, f"{span.score:.4f}", where(span))
            for line, result in pairs
            for place, span in enumerate(result.spans)
        ]
        print_table(("text", "span", "label", ">score", ">place"), spans, title=title)
        return
    labels = [
        (line.text if place == 0 else "", scored.label, f"{scored.score:.4f}")
        for line, result in pairs
        for place, scored in enumerate(result.ranking[:num_labels])
    ]
    print_table(("text", "label", ">score"), labels, title=title)


def print_outcome(
    index: int, outcome: types.StreamedClassification, line: Line, num_labels: int | None, *, as_json: bool
) -> None:
    """One line: JSON, or labels and scores and, of spans, what they cover, with tabs between, the text last."""
    if as_json:
        print_json({"index": index, **_as_json(outcome)})
    elif outcome.error is not None:
        sys.stdout.write(f"error\t{outcome.error.code.name}\t{line.text}\n")
    elif outcome.result is not None:
        scored = [f"{label}\t{score:.4f}" for label, score in outcome.result.ranking[:num_labels]]
        spans = [f"{s.label}\t{s.score:.4f}\t{covered(line.content, s)}" for s in outcome.result.spans]
        sys.stdout.write("\t".join([*scored, *spans, line.text]) + "\n")
    sys.stdout.flush()  # whoever feeds the pipe may wait for the answer


def covered(content: types.ClassifyInput, span: types.TokenSpan) -> str:
    """What a span covers of what was sent, on one line."""
    part = content[span.start : span.end]
    return excerpt(part if isinstance(part, str) else " ".join(map(str, part)))


def where(span: types.TokenSpan) -> str:
    """Where a span stands, for people."""
    return f"{span.start}-{span.end}"


def _as_json(outcome: types.StreamedClassification) -> dict[str, object]:
    if outcome.error is not None:
        return {"error": _error_as_json(outcome.error)}
    assert outcome.result is not None
    assert outcome.served_by is not None
    result = outcome.result
    return {
        "labels": result.labels,
        "scores": result.scores,
        "spans": result.spans,
        "num_input_tokens": result.num_input_tokens,
        "num_dropped_tokens": result.num_dropped_tokens,
        "num_windows": result.num_windows,
        "model": outcome.served_by.model,
        "version": outcome.served_by.version,
    }


def _error_as_json(error: RpcError) -> dict[str, object]:
    return {"code": error.code.name, "reason": error.reason, "message": error.message, "violations": error.violations}
