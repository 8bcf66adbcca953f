"""A gRPC load generator, and side-by-side runs of Shoal against a server that a user would write in an afternoon."""
