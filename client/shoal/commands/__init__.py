"""The commands of `shoal`, one a file."""
