"""Which sessions are in memory: how they come, how long they stay, how they leave."""
