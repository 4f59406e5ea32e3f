"""From data to a Model, and from a Model to a smaller one."""
