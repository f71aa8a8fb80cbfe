"""Projects: what runs are grouped by."""
