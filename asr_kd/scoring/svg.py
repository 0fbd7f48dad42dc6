"""SVG figures that take their colours and font from the page, so that they suit light and dark.

matplotlib draws with placeholder colours, which become CSS variables of the page. Nothing in the output depends on
the time or on chance: the same data give the same bytes. The colours of the series can be told apart by the
colour-blind (Okabe & Ito 2008), and lines differ in their dashes or places too.
"""

import io
import re
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

NUM_SERIES = 6
INK, RULE = "#010101", "#020202"
SERIES = [f"#03030{i}" for i in range(NUM_SERIES)]
_VARIABLES = {INK: "currentColor", RULE: "var(--rule)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)
}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "asr_kd",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
} | dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK
)

# The role decides the colour, so that a system has the same one in every figure.
ROLE_COLOURS = {
    role: SERIES[i] for i, role in enumerate(("baseline", "ensemble", "student", "control", "specialists", "member"))
}
DASHES = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5))]


def to_svg(figure: Figure, prefix: str, label: str) -> str:
    """The figure as an <svg> element for inlining; `prefix` keeps its ids apart from those of other figures."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for part in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<!--.*?-->"):
        svg = re.sub(part, "", svg, flags=re.DOTALL)
    # matplotlib makes some ids of addresses in memory.
    for number, generated in enumerate(dict.fromkeys(re.findall(r'\bid="([a-z][0-9a-f]{10})"', svg))):
        svg = svg.replace(generated, f"g{number}")
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#{prefix}-', svg).replace("xlink:href=", "href=")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    width, height = figure.get_size_inches() * 96
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        lambda found: (
            f'<svg viewBox="{found[1]}" width="{width:.0f}" height="{height:.0f}" role="img" '
            f'aria-label="{escape(label)}" xmlns="http://www.w3.org/2000/svg">'
        ),
        svg,
        count=1,
    )


def drawing() -> Any:
    """The context in which a figure is drawn and written."""
    return rc_context(STYLE)


def shared_legend(figure: Figure, columns: int = 4) -> None:
    """One legend under all panels, a line for each label."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        columns = min(len(handles), columns)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, handlelength=2.4)
