"""The benchmarks, one for each claim of the README. Each prints the table that supports its claim."""
