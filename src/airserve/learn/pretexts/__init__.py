"""Open set: a pretext, from which a net learns before it sees a label, is one readable file.

`Config` (how it is trained: epochs, batch, rate, decay, perhaps an optimizer) and `build(config, net, form)`, which
gives a torch module that holds the net. Its `objective(inputs)`, shape (), is what training makes small; `inputs` are
those of the train split as the net takes them. Afterwards only the net is kept, so weights that serve the pretext alone
belong to the module. It raises `ModelError` in one sentence for a net or inputs from which it cannot learn.
"""

from airserve.learn.nets import Form
from airserve.model import ModelError


def unfit(name: str, takes: str, form: Form) -> ModelError:
    """What is said of inputs from which a pretext cannot learn: what it takes, and what to do instead.

    >>> print(unfit("masked", "texts", Form((28, 28), 10)))
    masked pre-training takes texts, not inputs of shape (28, 28); give pretrain=contrastive, which takes pictures.
    """
    if form.ids:
        instead = "give pretrain=masked, which takes texts" if len(form.ids) == 1 else ""
    else:
        instead = "give pretrain=contrastive, which takes pictures" if len(form.shape) in (2, 3) else ""
    return ModelError(f"{name} pre-training takes {takes}, not {form}; {instead or 'leave pretrain out'}.")
