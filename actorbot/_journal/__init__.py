"""What was acknowledged is on this machine's disk until the store has it."""
