"""Projects: groups of runs, and their settings."""
