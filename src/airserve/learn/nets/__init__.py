"""Open set: a net is one readable file; `Config` and `build`."""
