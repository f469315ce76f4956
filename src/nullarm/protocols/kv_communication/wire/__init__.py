"""The wire: a cache becomes bytes and comes back. `codec` says how, `size` how many, `message` does it."""
