"""Shared bases adapted on a stream of text."""
