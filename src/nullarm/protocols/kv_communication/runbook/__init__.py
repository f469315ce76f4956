"""The source's names: run tags, output tree, manifests, and one run of its own."""
