"""Ways to make a matrix smaller: `settings` names them, `decompose` finds factors, `rounding` makes codes."""
