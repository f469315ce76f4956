"""nullarm: controlled experiments on the insides and the compression of language models.

Data moves one way: study → plan → engine → worker → store → analysis → report.
Importing this package imports no torch.
"""

__version__ = "0.1.0"
