"""What was seen: cells, chunks, records, artefacts and the index over them. Imports no torch."""
