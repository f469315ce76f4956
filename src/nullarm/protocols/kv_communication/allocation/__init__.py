"""How many bits each stream gets, and what each codec does to it."""
