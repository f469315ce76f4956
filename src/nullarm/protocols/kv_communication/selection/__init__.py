"""What is sent: which tokens, and how many bits each stream gets."""
