"""The runbook's own configuration files, read as they are."""
