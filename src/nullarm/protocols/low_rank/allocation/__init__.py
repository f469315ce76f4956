"""Which group of matrices gets which rank, within one budget of numbers."""
