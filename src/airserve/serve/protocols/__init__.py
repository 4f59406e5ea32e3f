"""Open set: a protocol reads requests and writes replies; the core speaks none."""
