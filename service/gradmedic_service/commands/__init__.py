"""The service's commands for the `gradmedic` program, one module each.

`gradmedic.cli` finds their objects through the entry-point group `gradmedic.commands`. Importing such a module is
cheap: a command imports what it needs when it runs.
"""
