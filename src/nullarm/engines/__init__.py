"""Where cells run. An engine starts workers by module name and imports neither models nor protocols."""
