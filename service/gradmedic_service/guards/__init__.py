"""Guard actions: what the guards of runs did, as the SDK reports it."""
