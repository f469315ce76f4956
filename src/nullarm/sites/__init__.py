"""Machines: what they are, what they cost, and whether they are ready. Imports no torch."""
