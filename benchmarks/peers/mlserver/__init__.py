"""See server.py (runs in the peer's environment) and peer.py (runs in ours)."""
