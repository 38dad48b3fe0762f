"""Many runs as one HTML file that needs nothing else: the data, and a script that draws it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cdpo_lightning.report.run.page import CONVENTION, asset, head
from cdpo_lightning.report.run.page_parts import esc

RELOAD_SECONDS = 20  # of a page that is made anew as jobs end
_SECTIONS = (
    (
        "frontier",
        "Reward against cost",
        "Top left is better. Filled: the limit is met; pale: undecided; open: not met. Shaded: above the limit.",
    ),
    ("rounds", "The dual's rounds", "lambda, and the expected cost of the policy's own samples, round by round, of every run."),
    ("tails", "Tails, length and distance", "Against E[cost]: an average can hide harm behind very safe answers."),
    ("categories", "Unsafe answers by category", "Share of answers with cost > 0, where a run measured it."),
)


def render_sweep(title: str, data: Mapping[str, Any], live: bool) -> str:
    """The whole page."""
    sections = "".join(
        f'<section id="{name}"><h2>{esc(heading)}</h2><p class="quiet">{esc(message)}</p><div class="charts"></div></section>'
        for name, heading, message in _SECTIONS
    )
    count = len(data["runs"])
    runs = f"{count} run" + ("s" if count != 1 else "")
    state = _state(data["jobs"])
    reload = f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">' if live else ""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return (
        f"{head(title, 'sweep.js', 'sweep.css', reload)}<body><main>"
        f'<header><p class="quiet">Constrained DPO · {runs}{state}</p><h1>{esc(title)}</h1>'
        f'<p class="quiet">{esc(CONVENTION)}; intervals are 95 %, clustered by prompt</p></header>'
        '<form id="controls" aria-label="Filters"></form><p id="count" class="quiet" role="status"></p>'
        f"{sections}"
        '<section id="results"><h2>Results</h2><p><a id="csv" download="sweep.csv" href="#">Download as CSV</a>'
        ' <span class="quiet">(the rows shown)</span></p><div class="wide" role="region" tabindex="0" aria-label="Results">'
        '<table class="sortable"></table></div></section>'
        '<section id="run"><h2>One run</h2><p class="quiet">Choose a point or a row.</p><div id="detail"></div></section>'
        '<section id="samples"><h2>Samples</h2><details><summary>Show samples: content warning, they may be harmful or offensive'
        '</summary><div id="prompts"></div></details></section>'
        '<div id="tip" role="tooltip" hidden></div>'
        f'<script type="application/json" id="data">{text}</script></main><script>{asset("sweep.js")}</script></body></html>\n'
    )


def _state(jobs: list[Mapping[str, Any]]) -> str:
    """How far the sweep is, where it left a list of its jobs."""
    counts = {state: sum(job["state"] == state for job in jobs) for state in ("running", "waiting", "failed")}
    return "".join(f" · {count} {state}" for state, count in counts.items() if count)
