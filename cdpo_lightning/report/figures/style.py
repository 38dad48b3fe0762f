"""The style of the figures: colour-blind safe colours (Okabe-Ito), sizes, and text colours with enough contrast."""

from collections.abc import Sequence

from matplotlib.colors import to_hex, to_rgb

from cdpo_lightning.config.methods import presentation_of

INK, QUIET, GRID = "#1f2328", "#5c636b", "#e4e7ea"
VERMILLION, GREEN, YELLOW = "#D55E00", "#009E73", "#F0E442"
_SPARE = ("#8a6d00", "#7b3294", "#4d4d4d")
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


def colour_of(policy: str) -> str:
    """Return the policy's colour as #rrggbb, the same in every figure and every run."""
    return presentation_of(policy).colour or _SPARE[sum(map(ord, policy)) % len(_SPARE)]


def text_colour(policy: str) -> str:
    """Return the policy's colour as #rrggbb, dark enough for text on white."""
    return readable(colour_of(policy))


def readable(colour: str) -> str:
    """Return the colour as #rrggbb, darkened until its contrast against white is 4.5 to 1 (WCAG)."""
    parts = to_rgb(colour)
    while _luminance(parts) > 0.18:
        parts = tuple(0.92 * part for part in parts)
    return to_hex(parts)


def _luminance(colour: Sequence[float]) -> float:
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def with_minus_sign(text: str) -> str:
    """Return the text with a typographic minus sign, as on the axes."""
    return text.replace("-", "\N{MINUS SIGN}") if text[:1] == "-" else text.replace(" -", " \N{MINUS SIGN}")
