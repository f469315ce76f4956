"""The work of each stage, as a worker does it."""
