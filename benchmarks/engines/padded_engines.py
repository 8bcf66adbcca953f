"""OpenVINO in bfloat16 and ONNX Runtime in int8 on padded batches, sorted by length. Runs in its own environment.

Both read the model from a transformers folder; what they make of it is kept in `--work`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.engines import work

NAMES = ("input_ids", "attention_mask", "token_type_ids")
_OPSET = 17


def main() -> int:
    """Serve lines on standard input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("openvino", "onnxruntime"), required=True)
    parser.add_argument("--model", type=Path, required=True, help="transformers folder")
    parser.add_argument("--work", type=Path, required=True, help="for exported models")
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--checked", type=int, required=True)
    options = parser.parse_args()
    exported = _export(options.model, options.work)
    make = _openvino if options.engine == "openvino" else _onnxruntime
    work.serve(options.texts, options.checked, work.by_length, lambda threads: make(exported, threads))
    return 0


def _export(model: Path, folder: Path) -> Path:
    """The model as ONNX in float32, with free batch and length."""
    path = folder / "model.onnx"
    if path.exists():
        return path
    import torch
    from transformers import AutoModelForSequenceClassification

    folder.mkdir(parents=True, exist_ok=True)
    found: Any = AutoModelForSequenceClassification.from_pretrained(model, attn_implementation="eager")
    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in NAMES)
    axes = {name: {0: "batch", 1: "length"} for name in NAMES} | {"logits": {0: "batch"}}
    torch.onnx.export(
        _Plain(found.eval()),
        example,
        str(path),
        input_names=list(NAMES),
        output_names=["logits"],
        dynamic_axes=axes,
        opset_version=_OPSET,
        dynamo=False,
    )
    return path


def _Plain(model: Any) -> Any:  # noqa: N802  a module, made where torch is at hand
    import torch

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, mask: Any, types: Any) -> Any:
            return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits

    return Plain()


def _openvino(path: Path, threads: int) -> work.Forward:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    settings["ENABLE_CPU_PINNING"] = False  # or lanes would share a core
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    request = compiled.create_infer_request()

    def forward(batch: list[list[int]]) -> Sequence[Sequence[float]]:
        request.infer(_padded(batch))
        return _softmax(request.get_output_tensor(0).data)

    return forward


def _onnxruntime(path: Path, threads: int) -> work.Forward:
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantised = path.with_name("model-int8.onnx")
    if not quantised.exists():
        quantize_dynamic(path, quantised, weight_type=QuantType.QInt8, per_channel=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(quantised), options, providers=["CPUExecutionProvider"])

    def forward(batch: list[list[int]]) -> Sequence[Sequence[float]]:
        return _softmax(session.run(["logits"], _padded(batch))[0])

    return forward


def _padded(batch: list[list[int]]) -> dict[str, NDArray[np.int64]]:
    longest = max(map(len, batch))
    ids = np.zeros((len(batch), longest), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(batch):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def _softmax(logits: NDArray[np.float32]) -> list[list[float]]:
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: list[list[float]] = (raised / raised.sum(axis=-1, keepdims=True)).tolist()
    return found


if __name__ == "__main__":
    sys.exit(main())
