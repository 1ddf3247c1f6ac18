"""Plots of the scripts of this folder: a grid of panels in one PNG, drawn with matplotlib without a display."""

import sys

from network import ROOT

INSTALL = f"""Plots need matplotlib. Make a folder for it once:

    python3 -m venv {ROOT}/target/plots
    {ROOT}/target/plots/bin/pip install matplotlib

and run this script with {ROOT}/target/plots/bin/python."""

COLOURS = ["#2f6db0", "#d4752a", "#3f8f5b", "#8a5fb0", "#a8443c", "#6b6b6b"]


def demand():
    """Ends the script where there is no matplotlib."""
    try:
        import matplotlib
    except ImportError:
        sys.exit(INSTALL)
    matplotlib.use("Agg")


class Panel:
    """One plot. `series`: (name, xs, ys) each; what is `None` is not drawn."""

    def __init__(self, title, series, x_label="", log_x=False, from_zero=True, band=None):
        self.title, self.x_label, self.log_x, self.from_zero = title, x_label, log_x, from_zero
        self.series, self.band = series, band

    def draw(self, axes, markers):
        drawn = []
        for (name, xs, ys), colour in zip(self.series, COLOURS * len(self.series)):
            points = [(x, y) for x, y in zip(xs, ys) if x is not None and y is not None]
            if points:
                line = {"marker": "o", "markersize": 4} if markers else {}
                axes.plot(*zip(*points), color=colour, linewidth=1.5, label=name, **line)
                drawn += [y for _, y in points]
        if self.band:
            axes.axvspan(*self.band, color="#eeeeee", zorder=0)
        if self.log_x:
            axes.set_xscale("log")
            axes.set_xticks(sorted({x for _, xs, _ in self.series for x in xs}))
            axes.xaxis.set_major_formatter(short)
            axes.minorticks_off()
        if self.from_zero and drawn:
            axes.set_ylim(0, max(max(drawn) * 1.1, 1e-9))
        if not drawn:
            axes.text(0.5, 0.5, "no figure", ha="center", va="center", transform=axes.transAxes, color="#a8443c")
        axes.set_title(self.title, fontsize=10, loc="left")
        axes.set_xlabel(self.x_label, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.yaxis.set_major_formatter(short)
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if len(self.series) > 1 and drawn:
            axes.legend(fontsize=7, frameon=False)


def short(value, _position=None):
    """Numbers of an axis."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if size >= 1e3 and size % 100 == 0 else f"{value:,.6g}"


def where(machine):
    """Where figures come from, in one line."""
    return (f"{machine['date']}, {machine['cores']} cores, {machine['processor']}, Linux {machine['kernel']}, "
            f"{machine['program']}")


def draw(file, title, panels, notes=(), columns=3, markers=True):
    """All panels into one PNG; `notes` stand below."""
    demand()
    from matplotlib import pyplot

    rows = -(-len(panels) // columns)
    columns = min(columns, len(panels))
    figure, grid = pyplot.subplots(rows, columns, figsize=(4.6 * columns, 3.3 * rows + 0.9), squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    for panel, axes in zip(panels, grid.flat):
        axes.set_visible(True)
        panel.draw(axes, markers)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    height = figure.get_size_inches()[1]
    figure.text(0.01, 0.08 / height, "\n".join(notes), fontsize=8, color="#444444", va="bottom")
    figure.tight_layout(rect=(0, (0.15 + 0.17 * len(notes)) / height, 1, 1))
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
