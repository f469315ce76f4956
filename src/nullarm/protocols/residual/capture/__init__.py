"""Measuring: two models, a batch of prompts, the lens, the shards, and the tables made of them."""
