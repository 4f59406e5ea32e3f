"""Learning curves as a picture: loss of training and of validation, and the score, by epoch; SVG, drawn here."""

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 320, 220  # of one panel, pixels
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 30, 34
COLOURS = ("#4269d0", "#ff725c")


def draw(title: str, curve: Sequence[Mapping[str, float]], metric: str) -> str:
    """Two panels beside each other, losses and score. `curve` has a mapping per epoch: train_loss, loss, the metric.

    One panel alone where the curve has no such score.
    """
    losses = {"training": [each["train_loss"] for each in curve], "validation": [each["loss"] for each in curve]}
    panels = [("loss", losses)]
    if metric in curve[0]:
        panels.append((metric, {"validation": [each[metric] for each in curve]}))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {len(panels) * WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="11"><title>{escape(title)}</title>'
        '<rect width="100%" height="100%" fill="white"/>'
    ]
    for k, (name, lines) in enumerate(panels):
        parts.append(f'<g transform="translate({k * WIDTH} 0)">{panel(name, lines)}</g>')
    return "".join([*parts, "</svg>\n"])


def panel(name: str, lines: Mapping[str, Sequence[float]]) -> str:
    """One pair of axes with its lines; the outermost values and epochs are written at the axes."""
    every = [value for line in lines.values() for value in line]
    low, high, epochs = min(every), max(every), max(len(line) for line in lines.values())
    span = high - low or 1.0

    def place(epoch: int, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (epoch / (epochs - 1) if epochs > 1 else 0.5)
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / span)
        return f"{x:.1f},{y:.1f}"

    floor, wall = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [
        f'<text x="{LEFT}" y="16" font-weight="bold">{escape(name)}</text>',
        f'<path d="M{LEFT} {TOP}V{floor}H{wall}" fill="none" stroke="#888"/>',
        f'<text x="{LEFT - 4}" y="{TOP + 4}" text-anchor="end">{high:.4g}</text>',
        f'<text x="{LEFT - 4}" y="{floor}" text-anchor="end">{low:.4g}</text>',
        f'<text x="{LEFT}" y="{floor + 16}">epoch 1</text>',
        f'<text x="{wall}" y="{floor + 16}" text-anchor="end">{epochs}</text>',
    ]
    for k, (label, line) in enumerate(lines.items()):
        points = " ".join(place(epoch, value) for epoch, value in enumerate(line))
        colour = COLOURS[-len(lines) :][k]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{wall}" y="{14 + 12 * k}" text-anchor="end" fill="{colour}">{escape(label)}</text>')
    return "".join(parts)
