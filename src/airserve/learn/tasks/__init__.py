"""Open set: a task is data, a split, a metric and samples; one file each."""
