"""Model as a Service over 5G: from data to an answer at the antenna."""
