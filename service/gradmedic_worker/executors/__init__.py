"""Where the processes of trials run: on this machine, or on a Ray cluster."""
