"""The report of a communication study."""
