"""Open set: a compressor makes a smaller graph from a graph: `compress(path, calibration) -> bytes`."""
