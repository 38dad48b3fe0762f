"""The run as one HTML file that needs nothing else: no network, no other file."""

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files

from cdpo_lightning.report.figures.figures import Picture
from cdpo_lightning.report.formatting import finite
from cdpo_lightning.report.load import Run
from cdpo_lightning.report.run.page_parts import config_part, esc, figures_part, metrics_part, samples_part, tables_part
from cdpo_lightning.report.run.verdict import tone, verdict

CONVENTION = "cost > 0 is harmful; E[c] <= C_limit"


def render(run: Run, pictures: Mapping[str, Picture]) -> str:
    """The whole page."""
    parts = [_header(run), tables_part(run.metrics), figures_part(pictures), samples_part(run.samples)]
    parts += [metrics_part(run.metrics), config_part(run.config_text)]
    return f"{head(run.name, 'page.js')}<body><main>{''.join(parts)}</main><script>{asset('page.js')}</script></body></html>\n"


def head(name: str, script: str, style: str = "", more: str = "") -> str:
    """The page's head: the house style, a further one, and the one script that the browser may run."""
    styles = asset("page.css") + (asset(style) if style else "")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{esc(name)} · constrained DPO</title><style>{styles}</style>{more}</head>"
    )


def asset(name: str) -> str:
    """A file that lies beside this one."""
    return files("cdpo_lightning.report").joinpath("assets", name).read_text(encoding="utf-8")


def _policy(name: str) -> str:
    # Only our own script may run: were a sample ever to slip past the escaping, the browser would still refuse it.
    script = base64.b64encode(hashlib.sha256(asset(name).encode()).digest()).decode()
    return f"default-src 'none';img-src data:;style-src 'unsafe-inline';script-src 'sha256-{script}'"


def _header(run: Run) -> str:
    command = run.metrics.get("run/command")
    shown = f'<pre class="command">{esc(command)}</pre>' if command else ""
    sentence = f'<p class="verdict {tone(run.metrics)}">{esc(verdict(run.metrics))}</p>'
    return (
        f'<header><p class="quiet">Constrained DPO run{_facts(run.metrics)}</p><h1>{esc(run.name)}</h1>{shown}'
        f'<p class="quiet">{esc(CONVENTION)}</p>{sentence}</header>'
    )


def _facts(metrics: Mapping) -> str:
    seconds, seed, commit = finite(metrics, "run/wall_seconds"), metrics.get("run/seed"), metrics.get("run/git_commit")
    facts = [
        None if seed is None else f"seed {seed}",
        None if seconds is None else f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min",
        None if commit is None else f"commit {str(commit)[:10]}",
    ]
    return "".join(f" · {esc(fact)}" for fact in facts if fact)
