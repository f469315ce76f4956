"""What the matrices of a model read: `statistics` sums it up, `collect` listens while a text is read."""
