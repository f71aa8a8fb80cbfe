"""One file per claim of the README: each prints the table that backs it."""
