"""Runs docs/from-attention-to-decisions.md and draws its pictures from the values that its code leaves behind.

    python -m docs.draw     # in a checkout; writes docs/pictures/path-*.png

Each picture is a function of the page's namespace, registered under the name of its file.
"""

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

PAGE = Path(__file__).parent / "from-attention-to-decisions.md"
BLUE, ORANGE, GREEN, GREY, INK = "#33658a", "#d9822b", "#5b8c5a", "#9aa5b1", "#2b2f36"
SHARES = LinearSegmentedColormap.from_list("shares", ["#ffffff", "#c8d9e6", BLUE, "#16324a"])
SIGNS = LinearSegmentedColormap.from_list("signs", [ORANGE, "#ffffff", BLUE])
STYLE = {
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e9ed",
    "lines.linewidth": 2.0,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    "savefig.dpi": 110,
}

Picture = Callable[[SimpleNamespace], Figure]
PICTURES: dict[str, Picture] = {}
"""Every picture of the page by its file's name."""


def run_page(page: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Run the Python blocks of a page in order, in one namespace.

    Returns that namespace and, for each block, the `text` block right under it ("" if there is none) and what it
    printed.
    """
    text, names, outputs = page.read_text(encoding="utf-8"), {}, []
    for match in re.finditer(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", text, re.MULTILINE | re.DOTALL):
        lines_before = text.count("\n", 0, match.start(1))
        code = compile("\n" * lines_before + match[1], str(page), "exec")  # errors name the page's own line
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, names)
        outputs.append((match[2] or "", printed.getvalue()))
    return names, outputs


def picture(name: str) -> Callable[[Picture], Picture]:
    """Register a function as the picture of this name."""

    def register(function: Picture) -> Picture:
        PICTURES[name] = function
        return function

    return register


def draw(names: dict[str, Any], folder: Path, dpi: int = STYLE["savefig.dpi"]) -> None:
    """Draw every picture from a page's namespace into a folder."""
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, function in PICTURES.items():
            figure = function(SimpleNamespace(**names))
            figure.savefig(folder / name, dpi=dpi)
            pyplot.close(figure)


def heat(
    axes: Axes,
    values: Any,
    rows: Any = (),
    columns: Any = (),
    *,
    annotate: str = "{:.0%}",
    span: tuple[float, float] = (0, 1),
    colours: Any = SHARES,
) -> None:
    """A matrix as coloured squares with its numbers in them; words along its sides."""
    values = np.asarray(values, dtype=float)
    axes.imshow(values, cmap=colours, vmin=span[0], vmax=span[1], aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    for (i, j), value in np.ndenumerate(values) if annotate else ():
        shown = annotate.format(value) if np.isfinite(value) else "-∞"
        dark = (value - span[0]) / (span[1] - span[0]) > 0.5
        axes.text(j, i, shown, ha="center", va="center", fontsize=9, color="white" if dark else INK)


def box(axes: Axes, x: float, y: float, text: str, width: float, height: float, colour: str = "#eef2f6") -> None:
    """A rounded box around its middle."""
    corner = (x - width / 2, y - height / 2)
    shape = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch(corner, width, height, shape, fc=colour, ec=GREY, lw=1, zorder=3))
    axes.text(x, y, text, ha="center", va="center", zorder=4)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK) -> None:
    """An arrow between two points."""
    style = {"arrowstyle": "-|>", "color": colour, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style)


def blank(axes: Axes, width: float, height: float) -> None:
    """A sheet to draw boxes on, its unit the same along both sides."""
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")


@picture("path-attention.png")
def attention(page: SimpleNamespace) -> Figure:
    figure, panels = pyplot.subplots(1, 2, figsize=(7, 3.2))
    for axes, weights, title in zip(
        panels, (page.likeness, page.weights[0, 0]), ("by likeness", "by query and key"), strict=True
    ):
        heat(axes, weights, page.words, page.words)
        axes.set_xlabel(title, labelpad=8, fontweight="bold")
    panels[0].set_ylabel("this word looks at ...")
    return figure


@picture("path-scale.png")
def scale(page: SimpleNamespace) -> Figure:
    figure, panels = pyplot.subplots(1, 3, figsize=(7.4, 2.9))
    titles = "deviation of the scores", "largest of 8 weights", "length of the gradient"
    for i, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        axes.plot(page.widths, [values[i] for values in page.plain], "o-", color=ORANGE, label="as they are")
        axes.plot(page.widths, [values[i] for values in page.scaled], "o-", color=BLUE, label="divided by √Hd")
        axes.set_xscale("log", base=4)
        axes.set_xticks(page.widths, page.widths)
        axes.set(title=title, xlabel="head width Hd")
        axes.set_ylim(0, None if i != 1 else 1)
    panels[0].legend(loc="upper left", fontsize=9)
    return figure


@picture("path-heads.png")
def heads(page: SimpleNamespace) -> Figure:
    figure, panels = pyplot.subplots(1, 4, figsize=(7.4, 2.6), width_ratios=[1.5, 1, 1, 1.5])
    rows = [f"word {i}" for i in range(1, 5)]
    sheets = page.q.transpose(1, 2).flatten(2)[0].detach(), page.joined[0].detach()
    for axes, values, title in zip((panels[0], panels[3]), sheets, ("queries (L, D)", "joined (L, D)"), strict=True):
        top = float(values.abs().max())
        heat(axes, values, rows if axes is panels[0] else (), annotate="", span=(-top, top), colours=SIGNS)
        axes.axvline(3.5, color=INK, lw=1.5)
        axes.set_xticks([1.5, 5.5], ["head 1", "head 2"])
        axes.set_xlabel(title, labelpad=6, fontweight="bold")
    for axes, values, number in zip(panels[1:3], page.head_weights[0].detach(), (1, 2), strict=True):
        heat(axes, values)
        axes.set_xlabel(f"looks of\nhead {number} (L, L)", labelpad=6, fontweight="bold")
    return figure


@picture("path-mask.png")
def mask(page: SimpleNamespace) -> Figure:
    figure, panels = pyplot.subplots(1, 3, figsize=(7.4, 2.7))
    scores = (page.query @ page.key.mT / 2)[0, 0]
    heat(panels[0], scores, page.words, page.words, annotate="{:.1f}", span=(0, 5))
    heat(panels[1], scores.masked_fill(~page.visible, -torch.inf), (), page.words, annotate="{:.1f}", span=(0, 5))
    for i, j in (~page.visible).nonzero():
        panels[1].add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fc="#e9ecf0", ec="none"))
    heat(panels[2], page.masked[0, 0], (), page.words)
    for axes, title in zip(panels, ("scores", "the future hidden", "weights"), strict=True):
        axes.set_xlabel(title, labelpad=8, fontweight="bold")
    return figure


@picture("path-positions.png")
def positions(page: SimpleNamespace) -> Figure:
    figure, panels = pyplot.subplots(1, 2, figsize=(7.4, 3.1), width_ratios=[1.5, 1])
    image = panels[0].imshow(page.waves.T, cmap=SIGNS, vmin=-1, vmax=1, aspect="auto")
    panels[0].set(xlabel="position", ylabel="dimension", title="the waves")
    panels[0].grid(False)
    figure.colorbar(image, ax=panels[0], ticks=[-1, 0, 1], pad=0.02).outline.set_visible(False)
    panels[1].plot(page.alike[50], color=BLUE)
    panels[1].axvline(50, color=ORANGE, lw=1, ls="--")
    panels[1].set(xlabel="position", title="dot product with position 50")
    return figure


@picture("path-rotary.png")
def rotary(page: SimpleNamespace) -> Figure:
    figure, panels = pyplot.subplots(1, 2, figsize=(7.4, 3.2), width_ratios=[1, 1.25])
    axes, angle = panels[0], float(page.turn.frequencies[1])
    for position in range(8):
        x, y = np.cos(angle * position), np.sin(angle * position)
        arrow(axes, (0, 0), (x, y), BLUE if position else ORANGE)
        axes.text(1.14 * x, 1.14 * y, str(position), ha="center", va="center", color=INK if position else ORANGE)
    axes.set(xlim=(-1.1, 1.3), ylim=(-0.7, 1.7), aspect="equal", title="two dimensions, positions 0 to 7")
    axes.axis("off")
    top = float(page.rotary.abs().max())
    image = panels[1].imshow(page.rotary, cmap=SIGNS, vmin=-top, vmax=top, aspect="equal")
    panels[1].set(xlabel="position of the key", ylabel="position of the query", title="their score, wherever they are")
    panels[1].grid(False)
    figure.colorbar(image, ax=panels[1], pad=0.02).outline.set_visible(False)
    return figure


@picture("path-block.png")
def block(page: SimpleNamespace) -> Figure:
    figure, panels = pyplot.subplots(1, 2, figsize=(7, 4.6))
    for axes, norm in zip(panels, ("pre", "post"), strict=True):
        blank(axes, 4.2, 6.4)
        axes.set_title("pre-norm" if norm == "pre" else "post-norm", fontweight="bold")
        arrow(axes, (1, 0.15), (1, 6.25))
        axes.text(0.85, 0.3, "x", ha="right")
        for base, part in ((0.6, "attention"), (3.4, "feed-forward")):
            _branch(axes, base, part, norm)
    return figure


def _branch(axes: Axes, base: float, part: str, norm: str) -> None:
    """One residual branch from `base` upwards: out of the stream, through the part, and back by a plus."""
    steps = ["layer norm", part] if norm == "pre" else [part]
    join = base + 2.2 if norm == "pre" else base + 1.5
    axes.plot([1, 2.9], [base, base], color=INK, lw=1.3)
    y = base
    for name in steps:
        arrow(axes, (2.9, y), (2.9, y + 0.4))
        box(axes, 2.9, y + 0.65, name, 1.9, 0.5, "#fbe9d3" if name == "layer norm" else "#dbe7f0")
        y += 0.9
    axes.plot([2.9, 2.9], [y, join], color=INK, lw=1.3)
    arrow(axes, (2.9, join), (1.2, join))
    axes.plot(1, join, "o", ms=15, color="white", mec=INK, mew=1.2, zorder=3)
    axes.text(1, join - 0.01, "+", ha="center", va="center", fontsize=13, zorder=4)
    if norm == "post":
        box(axes, 1, join + 0.75, "layer norm", 1.7, 0.5, "#fbe9d3")


@picture("path-depth.png")
def depth(page: SimpleNamespace) -> Figure:
    figure, panels = pyplot.subplots(1, 2, figsize=(7.4, 3))
    curves = {"pre": ("pre-norm", BLUE), "post": ("post-norm", ORANGE), "bare": ("no residual", GREY)}
    for i, axes, title in ((1, panels[0], "what tells words apart"), (0, panels[1], "size of the stream")):
        for name, (label, colour) in curves.items():
            axes.plot(range(1, 25), [door[i] for door in page.doors[name]], color=colour, label=label)
        axes.set(title=title, xlabel="at the door of block", xticks=[1, 6, 12, 18, 24])
    panels[0].set_yscale("log")
    panels[0].legend(loc="lower left", fontsize=9)
    panels[1].set_ylim(0)
    return figure


@picture("path-language.png")
def language(page: SimpleNamespace) -> Figure:
    figure, panels = pyplot.subplots(1, 3, figsize=(7.4, 2.9), width_ratios=[1.2, 1, 1])
    panels[0].plot(page.losses, color=BLUE)
    panels[0].axhline(np.log(2) / 3, color=ORANGE, ls="--", lw=1.2)
    panels[0].text(200, np.log(2) / 3 + 0.06, "the coin toss: log 2 / 3", ha="right", color=ORANGE, fontsize=9)
    panels[0].set(title="loss", xlabel="step", ylim=(0, None))
    words = page.sentences[3].split()
    for axes, weights, number in zip(panels[1:], page.writer_looks, (1, 2), strict=True):
        heat(axes, weights, words, words)
        axes.tick_params(labelsize=9)
        axes.set_xlabel(f"head {number}", labelpad=8, fontweight="bold")
    return figure


@picture("path-shift.png")
def shift(page: SimpleNamespace) -> Figure:
    figure, axes = pyplot.subplots(figsize=(7, 3.3))
    blank(axes, 10, 4.7)
    columns = {"source": [1.0, 1.8, 2.6], "target": [5.9, 6.9, 7.9, 8.9]}
    source, reads, answers = (row[0] for row in page.lesson(page.spelled(["boy"])))
    box(axes, 1.8, 2.35, "encoder", 2.6, 0.9, "#dbe7f0")
    box(axes, 7.4, 2.35, "decoder", 4.2, 0.9, "#fbe9d3")
    arrow(axes, (3.1, 2.35), (5.3, 2.35), BLUE)
    axes.text(4.2, 2.5, "memory", ha="center", color=BLUE)
    axes.text(4.2, 2.05, "keys, values", ha="center", color=BLUE, fontsize=9)
    for x, token in zip(columns["source"], source, strict=True):
        box(axes, x, 0.85, page.letters[token], 0.6, 0.6, "white")
        arrow(axes, (x, 1.15), (x, 1.9))
    for x, token, answer in zip(columns["target"], reads, answers, strict=True):
        box(axes, x, 0.85, page.letters[token], 0.6, 0.6, "white")
        arrow(axes, (x, 1.15), (x, 1.9))
        box(axes, x, 3.85, page.letters[answer], 0.6, 0.6, "#e3eee2")
        arrow(axes, (x, 2.8), (x, 3.55))
    for x, following in zip(columns["target"], columns["target"][1:], strict=False):
        axes.plot(
            [x + 0.3, x + 0.5, x + 0.5, following - 0.3], [3.85, 3.85, 0.85, 0.85], color=GREY, lw=1, ls=":", zorder=0
        )
    axes.text(1.8, 0.15, "source", ha="center")
    axes.text(7.4, 0.15, "target, shifted by one", ha="center")
    axes.text(7.4, 4.4, "target", ha="center")
    return figure


@picture("path-translators.png")
def translators(page: SimpleNamespace) -> Figure:
    figure, panels = pyplot.subplots(1, 2, figsize=(7, 3.5))
    letters = ["".join(page.letters[token]) for token in page.source[0]]
    steps = [*letters[::-1], "end"]
    for axes, weights, title in zip(
        panels, (page.recurrent_looks, page.transformer_looks), ("GRU with attention", "Transformer"), strict=True
    ):
        heat(axes, weights, steps, letters)
        axes.set_xlabel(title, labelpad=8, fontweight="bold")
    panels[0].set_ylabel("while it writes ...")
    return figure


@picture("path-changed.png")
def changed(page: SimpleNamespace) -> Figure:
    figure, panels = pyplot.subplots(1, 3, figsize=(7.6, 3))
    models = {"GRU": (page.recurrent, page.recurrent_losses, ORANGE)}
    models["Transformer"] = page.transformer, page.transformer_losses, BLUE
    for name, (model, losses, colour) in models.items():
        milliseconds = [1000 * second for second in page.seconds[model]]
        panels[0].plot(page.lengths, milliseconds, "o-", color=colour, label=name)
        panels[2].plot(losses, color=colour)
    panels[0].set(title="a training step, ms", xlabel="letters", xticks=page.lengths)
    panels[0].set_ylim(0)
    panels[0].legend(loc="upper left", fontsize=9)
    panels[1].semilogy(range(1, 41), page.gru_pull[1:], color=ORANGE)
    panels[1].semilogy(range(1, 41), page.block_pull[1:], color=BLUE)
    panels[1].set(title="pull of a word, untrained", xlabel="words back")
    panels[2].set(title="loss in learning", xlabel="step", ylim=(0, None))
    return figure


@picture("path-returns.png")
def returns(page: SimpleNamespace) -> Figure:
    figure, axes = pyplot.subplots(figsize=(6.4, 2.9))
    steps = np.arange(1, len(page.rewards) + 1)
    axes.bar(steps, page.togo, 0.9, color="#dbe7f0", label="return-to-go R")
    axes.bar(steps, page.rewards, 0.9, color=ORANGE, label="reward r")
    for step, value in zip(steps, page.togo, strict=True):
        axes.text(step, value + 0.12, f"{value:g}", ha="center", color=BLUE)
    axes.set(xlabel="step", xticks=steps, ylim=(0, 8))
    axes.grid(axis="x", visible=False)
    axes.set_axisbelow(True)
    axes.legend(loc="upper right")
    return figure


@picture("path-tokens.png")
def tokens(page: SimpleNamespace) -> Figure:
    figure, axes = pyplot.subplots(figsize=(7, 7.4))
    blank(axes, 10.4, 11.2)
    colours = {"R": "#fbe9d3", "s": "#dbe7f0", "a": "#e3eee2"}
    sentences = ((7.6, "Rsa", "token", 1.08), (3.8, "sa", "decoupled", 1.62), (0, "s", "single", 3.24))
    for base, kinds, name, gap in sentences:
        axes.text(0.2, base + 3.1, f"{name} conditioning", fontweight="bold")
        box(axes, 5.2, base + 1.6, "causal Transformer", 10, 0.55, "#f3f5f8")
        for i, (step, kind) in enumerate((step, kind) for step in (1, 2, 3) for kind in kinds):
            x = 5.2 + gap * (i - (3 * len(kinds) - 1) / 2)
            summed = name == "single" and step > 1  # with the action before it
            if summed:
                box(axes, x - 0.7, base + 0.5, f"$a_{step - 1}$", 0.7, 0.5, colours["a"])
                axes.text(x - 0.12, base + 0.5, "+", ha="center", va="center")
            box(axes, x + 0.45 * summed, base + 0.5, f"${kind}_{step}$", 0.7, 0.5, colours[kind])
            arrow(axes, (x, base + 0.75), (x, base + 1.32))
            if kind == "s":  # the action is read here
                arrow(axes, (x, base + 1.88), (x, base + 2.35))
                box(axes, x, base + 2.6, f"$a_{step}$", 0.7, 0.5, colours["a"])
            if kind == "s" and name != "token":
                box(axes, x + 1.25, base + 2.6, f"$R_{step}$", 0.7, 0.5, colours["R"])
                arrow(axes, (x + 0.9, base + 2.6), (x + 0.36, base + 2.6), ORANGE)
    return figure


@picture("path-lever.png")
def lever(page: SimpleNamespace) -> Figure:
    figure, panels = pyplot.subplots(1, 3, figsize=(7.6, 3.1))
    targets = range(page.days + 1)
    panels[0].plot(targets, targets, "--", color=GREY, lw=1.2)
    for (name, lived), colour, marker in zip(page.diaries.items(), (ORANGE, BLUE), "so", strict=True):
        panels[0].plot(targets, [sum(diary) for diary in lived], marker, color=colour, label=name, alpha=0.75)
    panels[0].set(title="asked and earned", xlabel="asked", ylabel="earned", xticks=range(0, 11, 2))
    panels[0].legend(loc="upper left", fontsize=9)
    for axes, (name, lived) in zip(panels[1:], page.diaries.items(), strict=True):
        colours = LinearSegmentedColormap.from_list("work", ["#f3f5f8", ORANGE if name == "token" else BLUE])
        axes.imshow(np.array(lived), cmap=colours, vmin=0, vmax=1, aspect="auto", origin="lower")
        axes.set(title=f"days of work: {name}", xlabel="day", yticks=range(0, 11, 2), xticks=range(0, 10, 3))
        axes.set_xticklabels(range(1, 11, 3))
        axes.grid(False)
        for edge in range(1, 11):
            axes.axhline(edge - 0.5, color="white", lw=1.5)
            axes.axvline(edge - 0.5, color="white", lw=1.5)
    panels[1].set_ylabel("asked")
    return figure


@picture("path-conditioning.png")
def conditioning(page: SimpleNamespace) -> Figure:
    figure, panels = pyplot.subplots(1, 2, figsize=(7.4, 3.3))
    for axes, (name, sway) in zip(panels, page.swayed.items(), strict=True):
        share = sway / sway.amax(1, keepdim=True)
        image = axes.imshow(share.clamp(min=1e-6).log10(), cmap=SHARES, vmin=-6, vmax=0)
        for row, column in (sway == 0).nonzero():
            axes.text(column, row, "0", ha="center", va="center", fontsize=8, color=GREY)
        axes.set(title=name, xlabel="return-to-go of step", xticks=range(0, 10, 3), yticks=range(0, 10, 3))
        axes.set_xticklabels(range(1, 11, 3))
        axes.set_yticklabels(range(1, 11, 3))
        axes.grid(False)
    panels[0].set_ylabel("action of step")
    bar = figure.colorbar(image, ax=panels[1], ticks=[0, -3, -6], label="share of the strongest")
    bar.ax.set_yticklabels(["1", "1 / 1000", "a millionth"])
    bar.outline.set_visible(False)
    return figure


def main() -> None:
    torch.set_num_threads(1)
    names, _ = run_page(PAGE)
    draw(names, PAGE.parent / "pictures")
    print(f"{len(PICTURES)} pictures in {PAGE.parent / 'pictures'}")


if __name__ == "__main__":
    main()
