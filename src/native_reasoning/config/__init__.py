"""Everything that can be set, the papers as rows of settings, and how a mistake is told."""
