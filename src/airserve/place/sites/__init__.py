"""Open set: a way to start the Functions of a Site; `Site`."""
