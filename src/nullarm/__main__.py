"""`python -m nullarm`."""

from nullarm.cli import main

main()
