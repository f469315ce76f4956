"""What an arm does with a batch of items: alone, by fused caches, by text."""
