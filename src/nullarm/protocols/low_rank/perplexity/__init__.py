"""Perplexity over whole texts: `streams` of tokens, cut into `windows`, whose `likelihoods` `measures` sums up."""
