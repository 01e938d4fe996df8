"""One event's stay in its session: the actor, its replies, its time, and circles of waiting."""
