"""The work of each stage. Runs in a worker; imports torch."""
