"""The service's commands for the `gradmedic` program."""
