"""Interventions that test what the maps suggest: patching, exchanging blocks, steering."""
