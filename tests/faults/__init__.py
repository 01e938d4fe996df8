"""The fault suite: what no accident may cost, each file about one kind of accident."""
