"""Training and serving of language models over gRPC: the client."""
