"""Open set: a planner chooses among candidates; `plan`."""
