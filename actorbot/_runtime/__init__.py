"""Where code runs: on a loop, on threads, in an actor's turn; and what time it is."""
