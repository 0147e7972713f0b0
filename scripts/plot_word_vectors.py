"""Draw docs/word-vectors.svg: rows of MiniLM's token table on their two main axes.

    python scripts/plot_word_vectors.py [--out docs/word-vectors.svg]

Needs matplotlib (`pip install -e '.[dev]'`). The same weights and versions give the same file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from ragembed import PoolingEncoder

Matrix = NDArray[np.float64]

# Every word is one token of the vocabulary, so one row of the table.
GROUPS = {
    "people": ("man", "woman", "king", "queen", "boy", "girl"),
    "animals": ("cat", "dog", "horse", "cow", "sheep", "rabbit"),
    "fruit": ("apple", "pear", "cherry", "plum", "grape", "lemon"),
    "instruments": ("violin", "piano", "guitar", "drum", "flute", "trumpet"),
}
# A contrast of more than 4 to 1 against white (#ffffff) and against a dark page (#0d1117).
COLOURS = ("#2f7fd6", "#c05a12", "#2a8647", "#a855c7")
MARKERS = ("o", "s", "^", "D")
GREY = "#7a7a7a"
# Where a label may stand, seen from its point: offset in points, alignments; best first.
SIDES = (
    ((7, 0), "left", "center"),
    ((-7, 0), "right", "center"),
    ((0, 6), "center", "bottom"),
    ((0, -6), "center", "top"),
)


def rows(encoder: PoolingEncoder, words: list[str]) -> Matrix:
    """The unit vectors of words, straight from the token table: (n, D)."""
    ids = [encoder.tokenizer.encode([word])[0].ids.tolist() for word in words]
    longer = [word for word, tokens in zip(words, ids, strict=True) if len(tokens) != 1]
    if longer:
        raise SystemExit(f"{', '.join(longer)}: more than one token; choose other words")
    table = encoder.front_end.token.weight.detach().double().numpy()
    found: Matrix = table[[tokens[0] for tokens in ids]]
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def two_axes(vectors: Matrix) -> tuple[Matrix, float]:
    """Principal components 1 and 2, (n, 2), and the share of the variance they hold."""
    _, sizes, axes = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    # The sign of an axis is arbitrary: its largest entry shall be positive.
    largest = np.abs(axes[:2]).argmax(axis=1)
    axes = axes[:2] * np.sign(axes[[0, 1], largest])[:, None]
    return (vectors - vectors.mean(axis=0)) @ axes.T, float(
        (sizes[:2] ** 2).sum() / (sizes**2).sum()
    )


def label(axes: plt.Axes, word: str, at: Matrix, colour: str, taken: list[Bbox]) -> None:
    """Write a word beside its point, on the side where it covers least."""

    def write(side: int) -> tuple[Annotation, Bbox]:
        offset, horizontal, vertical = SIDES[side]
        text = axes.annotate(
            word,
            tuple(at),
            offset,
            textcoords="offset points",
            ha=horizontal,
            va=vertical,
            color=colour,
            fontsize=12,
        )
        return text, text.get_window_extent().expanded(1.05, 0.9)

    def covered(side: int) -> float:
        text, box = write(side)
        text.remove()
        shared = (Bbox.intersection(box, other) for other in taken)
        return sum(found.width * found.height for found in shared if found is not None)

    best = min(range(len(SIDES)), key=covered)
    taken.append(write(best)[1])


def draw(points: Matrix, words: list[str], share: float, out: Path) -> None:
    """One marker and label a word, one colour and shape a group."""
    plt.rcParams.update({"svg.hashsalt": "ragembed", "svg.fonttype": "path"})
    figure, axes = plt.subplots(figsize=(7.6, 5.4), layout="constrained")
    axes.margins(0.12)
    axes.set_aspect("equal", adjustable="datalim")
    start = 0
    for group, colour, marker in zip(GROUPS, COLOURS, MARKERS, strict=True):
        part = points[start : start + len(GROUPS[group])]
        axes.scatter(part[:, 0], part[:, 1], s=34, c=colour, marker=marker, label=group)
        start += len(part)
    legend = axes.legend(
        frameon=False,
        fontsize=12,
        ncols=4,
        loc="upper center",
        bbox_to_anchor=(0.5, 1.1),
        handletextpad=0.2,
        columnspacing=1.4,
    )
    for text, colour in zip(legend.get_texts(), COLOURS, strict=True):
        text.set_color(colour)
    axes.set_xlabel(
        f"the two main axes of 24 vectors, {100 * share:.0f} % of their variance",
        color=GREY,
        fontsize=11,
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(GREY)
        spine.set_linewidth(0.6)
    figure.canvas.draw()  # labels are placed in pixels, so the axes have to be where they stay
    figure.set_layout_engine("none")
    pixels = axes.transData.transform(points)
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in pixels]
    colours = [colour for group, colour in zip(GROUPS, COLOURS, strict=True) for _ in GROUPS[group]]
    for word, at, colour in zip(words, points, colours, strict=True):
        label(axes, word, at, colour, taken)
    figure.savefig(out, transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def main() -> None:
    """Draw it, and say how well two axes hold the groups together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parents[1] / "docs" / "word-vectors.svg"
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args()
    words = [word for group in GROUPS.values() for word in group]
    encoder = PoolingEncoder.from_pretrained("all-MiniLM-L6-v2", device="cpu", dtype="float32")
    vectors = rows(encoder, words)
    points, share = two_axes(vectors)
    draw(points, words, share, options.out)
    group = np.repeat(np.arange(len(GROUPS)), [len(words) for words in GROUPS.values()])
    cosines = vectors @ vectors.T - 2 * np.eye(len(words))
    at_home = int((group[cosines.argmax(axis=1)] == group).sum())
    print(f"{options.out}: {share:.1%} of the variance")
    print(f"{at_home} of {len(words)} words have their nearest neighbour in their own group")


if __name__ == "__main__":
    main()
