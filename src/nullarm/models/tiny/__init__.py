"""Models small enough to be trained here in a minute, with the world they learn."""
