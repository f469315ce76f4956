"""What is asked: the study file, its identity, and the plan of cells. Imports no torch."""
