"""Alerts: one message per trouble of runs, and the destinations to which it goes."""
