"""Open set: a compressor makes a variant from a Model; `compress`."""
