"""From prompts to answers through a cache that other models have changed."""
