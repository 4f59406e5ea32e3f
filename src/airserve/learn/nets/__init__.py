"""Open set: a net is one readable file; `Config` (its parameters and how it is trained) and `build`.

`build(config, shape, classes)` gives a torch module that takes float32 inputs of zero mean and unit variance, shape
(n, *shape), and returns logits, float32, shape (n, classes).
"""
