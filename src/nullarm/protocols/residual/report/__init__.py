"""The HTML report of a residual study."""
