"""How committed sessions reach the store: which, when, again, and who is told."""
