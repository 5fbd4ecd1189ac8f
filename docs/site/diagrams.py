"""Draws the diagrams of `docs/how_it_works.md`: `python docs/site/diagrams.py`."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parents[1] / "images" / "how"
BLUE, GREEN, ORANGE, GREY = "#dbe4ff", "#d3f9d8", "#ffe8cc", "#f1f3f5"


def box(axes, x, y, text, colour, width=2.6, height=0.9):
    patch = plt.Rectangle((x - width / 2, y - height / 2), width, height, facecolor=colour, edgecolor="#495057", linewidth=1)
    axes.add_patch(patch)
    axes.text(x, y, text, ha="center", va="center", fontsize=10)


def arrow(axes, start, end, text="", shift=(0.0, 0.18), bend=0.0):
    style = dict(arrowstyle="->", color="#495057", linewidth=1.2, connectionstyle=f"arc3,rad={bend}")
    axes.annotate("", xy=end, xytext=start, arrowprops=style)
    middle = ((start[0] + end[0]) / 2 + shift[0], (start[1] + end[1]) / 2 + shift[1])
    axes.text(*middle, text, ha="center", va="center", fontsize=9, color="#495057")


def canvas(width, height):
    figure, axes = plt.subplots(figsize=(width * 0.75, height * 0.75))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_aspect("equal")
    axes.axis("off")
    return figure, axes


def training_loop():
    figure, axes = canvas(13, 6)
    box(axes, 2, 4.5, "environment", GREY)
    box(axes, 2, 1.6, "replay buffer\n(sequences)", GREY)
    box(axes, 6.5, 1.6, "world model\nobserves windows", BLUE, 3.2)
    box(axes, 11, 1.6, "imagined\ntrajectories", GREEN)
    box(axes, 11, 4.5, "actor, critic", ORANGE)
    box(axes, 6.5, 4.5, "world model\nobserves one step", BLUE, 3.2)
    arrow(axes, (3.3, 4.7), (4.9, 4.7), "observation")
    arrow(axes, (8.1, 4.7), (9.7, 4.7), "latent")
    arrow(axes, (11, 4.95), (2, 4.95), "action", (0, 0.75), 0.09)
    arrow(axes, (2, 4.05), (2, 2.05), "rows", (-0.5, 0))
    arrow(axes, (3.3, 1.6), (4.9, 1.6), "B x T rows")
    arrow(axes, (8.1, 1.6), (9.7, 1.6), "B T starts")
    arrow(axes, (11, 2.05), (11, 4.05), "returns:\nlearn", (0.75, 0))
    arrow(axes, (6.5, 1.15), (2, 1.15), "new latents are written back", (0, -0.62), -0.18)
    return figure


def one_step():
    figure, axes = canvas(13, 5.2)
    box(axes, 1.5, 4.3, "deter, stoch,\naction at t - 1", GREY)
    box(axes, 5, 4.3, "block GRU", BLUE)
    box(axes, 8.3, 4.3, "deter at t", GREY, 2.2)
    box(axes, 8.3, 2.3, "posterior", BLUE, 2.2)
    box(axes, 11.5, 4.3, "prior", BLUE, 2.0)
    box(axes, 5, 2.3, "embed", GREY, 2.0)
    box(axes, 1.5, 2.3, "encoder", BLUE, 2.0)
    box(axes, 11.5, 2.3, "stoch at t", GREY, 2.0)
    box(axes, 8.3, 0.7, "decoder, reward, continue, actor, critic", ORANGE, 7)
    arrow(axes, (2.8, 4.3), (3.7, 4.3))
    arrow(axes, (6.3, 4.3), (7.2, 4.3))
    arrow(axes, (9.4, 4.3), (10.5, 4.3))
    arrow(axes, (8.3, 3.85), (8.3, 2.75))
    arrow(axes, (2.5, 2.3), (4.0, 2.3))
    arrow(axes, (6.0, 2.3), (7.2, 2.3))
    arrow(axes, (9.4, 2.3), (10.5, 2.3), "observed", (0, 0.22))
    arrow(axes, (11.5, 3.85), (11.5, 2.75), "imagined", (0.75, 0))
    arrow(axes, (11.5, 1.85), (10.9, 1.15))
    arrow(axes, (7.4, 3.85), (6.0, 1.15), bend=0.25)
    return figure


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    plt.rcParams["svg.hashsalt"] = "sb3_dreamer"  # the same file each time
    for name, figure in (("training_loop", training_loop()), ("one_step", one_step())):
        figure.savefig(FOLDER / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
