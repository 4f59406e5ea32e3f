"""Open set: a pretext, from which a net learns before it sees a label, is one readable file.

`Config` (how it is trained: epochs, batch, rate, decay, perhaps an optimizer) and `build(config, net, form)`, which
gives a torch module that holds the net. Its `objective(inputs)`, shape (), is what training makes small; `inputs` are
those of the train split as the net takes them. Afterwards only the net is kept, so weights that serve the pretext alone
belong to the module. It raises `ModelError` in one sentence for a net or inputs from which it cannot learn.
"""
