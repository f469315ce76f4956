"""Bytes against accuracy: what each arm costs on the wire, what it is worth, and which arms are worth their cost."""
