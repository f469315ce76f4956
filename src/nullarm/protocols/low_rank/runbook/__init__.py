"""The source's files, and the block that a run ends with."""
