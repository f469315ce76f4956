"""The report of a compression study."""
