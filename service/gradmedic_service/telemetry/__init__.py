"""Telemetry: appending steps exactly once, reading series, and the diagnosis that follows the steps."""
