"""How the figures look: colour-blind safe colours (Okabe-Ito), sizes, and text in the margins and beside points."""

from collections.abc import Sequence

from matplotlib.colors import to_hex, to_rgb

INK, QUIET, GRID = "#1f2328", "#5c636b", "#e4e7ea"
BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
COLOURS = {
    "reference": "#7a7a7a",
    "sft": "#000000",
    "dpo": VERMILLION,
    "cdpo_fixed": "#56B4E9",
    "cdpo": BLUE,
    "pd_dpo": "#CC79A7",
    "o_pd_dpo": "#E69F00",
    "ppo_lag": GREEN,
}
MARKERS = {"reference": "D", "sft": "o", "dpo": "s", "cdpo_fixed": "v", "pd_dpo": "P", "o_pd_dpo": "X", "ppo_lag": "^"}
SPARE = ("#8a6d00", "#7b3294", "#4d4d4d")
STYLE = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "figure.facecolor": "white",
    "lines.solid_capstyle": "round",
}


def colour_of(who: str) -> str:
    """The method's colour, the same in every figure and every run."""
    return COLOURS.get(who) or SPARE[sum(map(ord, who)) % len(SPARE)]


def text_colour(who: str) -> str:
    """The method's colour, darkened until it can be read as text on white."""
    colour = to_rgb(colour_of(who))
    while _luminance(colour) > 0.18:  # contrast of 4.5 to 1 against white
        colour = tuple(0.92 * part for part in colour)
    return to_hex(colour)


def _luminance(colour: Sequence[float]) -> float:
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def signed(text: str) -> str:
    """Numbers with the typographic minus that the axes use too."""
    return text.replace("-", "\N{MINUS SIGN}") if text[:1] == "-" else text.replace(" -", " \N{MINUS SIGN}")
