"""Open set: a slice policy is one pure function, `allocate`, and what it promises, `PROMISES`."""
