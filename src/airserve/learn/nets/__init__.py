"""Open set: a net is one readable file; `Config` (its parameters and how it is trained) and `build(config, form)`.

`build` gives a torch module that takes one array, shape (n, *form.shape), and returns (n, form.outputs). Numbers come
with zero mean and unit variance, or as the task says; ids of words, users or films come as they are, and 0 pads a text.

A module may say more of itself, where it is not trained or exported so:
- `answers`, one of `nets.ANSWERS`, where it does not give one answer to a row;
- `objective(inputs, labels)`, shape (), what training makes small, in place of a loss of its outputs;
- `keeps_last = True`, where a validation loss tells nothing of how good it is: its last weights are kept;
- `wide = True`, where its matrices are large enough to be multiplied in bfloat16;
- `graphs(sense, rows)`, {part: exporting.Graph}, where it becomes several files or has several inputs.
"""

from dataclasses import dataclass

from airserve.model import ModelError

ANSWERS = {
    "row": "one answer to each row",
    "continuation": "what follows each symbol of a text",
    "text": "a text for each row",
    "boxes": "boxes and what is in each",
    "picture": "pictures like those it has seen",
    "move": "moves in a game",
}  # what a task asks for and a net gives


@dataclass(frozen=True)
class Form:
    """What a net is built for: the shape of one input, and how many outputs.

    `ids` says, where inputs are ids and not numbers, how many there are: (words,) for texts, whose length is free,
    (users, films) for pairs. `middle` is the mean of the numbers to be found, from where a net may start. Where
    answers are texts, `outputs` are the symbols in which they are written.
    """

    shape: tuple[int, ...]
    outputs: int
    ids: tuple[int, ...] = ()
    middle: float = 0.0

    def channels(self, net: str) -> int:
        """Of a picture, (height, width) or (height, width, channels). Raises `ModelError` for what is none."""
        if len(self.shape) not in (2, 3) or self.ids:
            raise ModelError(f"{net} takes pictures, not {self}; use {self.instead}.")
        return self.shape[2] if len(self.shape) == 3 else 1

    def wave(self, net: str, least: int) -> int:
        """Samples of a wave. Raises `ModelError` for what is none, or is shorter than a frame."""
        if len(self.shape) != 1 or self.ids or self.shape[0] < least:
            raise ModelError(f"{net} takes waves of at least {least} samples, not {self}; use {self.instead}.")
        return self.shape[0]

    def words(self, net: str) -> int:
        """How many words there are. Raises `ModelError` for what is no text."""
        if len(self.ids) != 1:
            raise ModelError(f"{net} takes texts, not {self}; use {self.instead}.")
        return self.ids[0]

    def vocabulary(self, net: str) -> int:
        """How many symbols texts and answers have. Raises `ModelError` where they are not of one vocabulary."""
        if self.outputs != self.words(net):
            raise ModelError(
                f"{net} writes in the vocabulary that it reads; this task has {self.ids[0]} and {self.outputs} symbols."
            )
        return self.outputs

    def pairs(self, net: str) -> tuple[int, int]:
        """How many users and how many films there are. Raises `ModelError` for what is no pair of ids."""
        if len(self.ids) != 2:
            raise ModelError(f"{net} takes pairs of ids, not {self}; use {self.instead}.")
        return self.ids[0], self.ids[1]

    def numbers(self, net: str) -> tuple[int, ...]:
        """The shape of one input. Raises `ModelError` for ids, which are no numbers."""
        if self.ids:
            raise ModelError(f"{net} takes numbers, not {self}; use {self.instead}.")
        return self.shape

    @property
    def instead(self) -> str:
        """A net for such inputs."""
        return {0: "mlp", 1: "gru", 2: "factorisation"}[len(self.ids)]

    def __str__(self) -> str:
        """
        >>> print(Form((32,), 3, ids=(5000,)))
        texts of 5000 words
        """
        kinds = {0: f"inputs of shape {self.shape}", 1: "texts of {} words", 2: "pairs of {} and {} ids"}
        return kinds[len(self.ids)].format(*self.ids)
