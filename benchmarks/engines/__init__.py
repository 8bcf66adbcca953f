"""Forwards alone, without a server: Shoal's own execution beside OpenVINO and ONNX Runtime."""
