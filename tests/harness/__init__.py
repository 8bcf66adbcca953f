"""What integration and fault tests share: real servers as processes, and small real models."""
