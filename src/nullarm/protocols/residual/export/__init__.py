"""The source's files, and the tools that read them: JSON, manifest, grids, summaries."""
