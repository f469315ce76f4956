"""Compressed matrices: what they are (`factors`), how a model applies them (`install`), keeps them, and is known by."""
