"""Interruptible training: killed at any step and resumed, it ends where an undisturbed run ends."""
