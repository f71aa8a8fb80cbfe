"""Servers, databases and programs that the tests and the benchmarks share. No module here is a test."""
