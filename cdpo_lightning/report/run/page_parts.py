"""The page's parts as HTML. Everything that comes from the run goes through `esc`."""

import base64
import html
from collections.abc import Mapping, Sequence

from cdpo_lightning.report.figures.figures import Picture
from cdpo_lightning.report.formatting import NAMES, finite, fixed, name_of, percent
from cdpo_lightning.report.tables.categories import HEADING, Category, category_table
from cdpo_lightning.report.tables.table import Column, caption, cell, rows, tables, to_csv

SHOWN_PROMPTS = 24
SHOWN_ANSWERS = 3  # of one method to one prompt


def esc(value: object) -> str:
    """The value as text that a browser can only read as text."""
    return html.escape(str(value), quote=True)


def data_uri(kind: str, content: bytes) -> str:
    """The content inside a link."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def figures_part(pictures: Mapping[str, Picture]) -> str:
    """The figures side by side, or one above the other on a phone; the wide one is for READMEs only."""
    shown = [_figure(picture) for name, picture in pictures.items() if name != "hero.png"]
    return f'<h2>Figures</h2><div class="figures">{"".join(shown)}</div>' if shown else ""


def _figure(picture: Picture) -> str:
    return f'<figure><img src="{data_uri("image/png", picture.png)}" alt="{esc(picture.alt)}"></figure>'


def tables_part(metrics: Mapping) -> str:
    """The caption, the sortable tables and the CSV to download."""
    link = data_uri("text/csv;charset=utf-8", to_csv(metrics).encode(errors="replace"))
    body = "".join(_table(*part) for part in tables(rows(metrics))) or "<p>Nobody was evaluated in this run.</p>"
    body += _categories(metrics)
    download = f'<p><a download="table.csv" href="{link}">Download as CSV</a></p>'
    return f'<h2>Results</h2><p class="quiet">{esc(caption(metrics))}</p>{body}{download}'


def _table(heading: str, columns: Sequence[Column], table: Sequence[Mapping]) -> str:
    return _sortable(heading, _titles(columns), "".join(_row(row, columns, at) for at, row in enumerate(table)))


def _sortable(heading: str, titles: Sequence[str], body: str) -> str:
    head = "".join(f'<th scope="col"><button type="button">{esc(title)}</button></th>' for title in titles)
    return (
        f'<h3>{esc(heading)}</h3><div class="wide" role="region" tabindex="0" aria-label="{esc(heading)}">'
        f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _categories(metrics: Mapping) -> str:
    titles, result = category_table(metrics)
    return _sortable(HEADING, titles, "".join(map(_category, result))) if result else ""


def _category(row: Category) -> str:
    cells = [(row.prompts, fixed(row.prompts, 0)), *((share, percent(share)) for share in row.unsafe)]
    body = "".join(f'<td data-v="{"" if value is None else value}">{esc(shown)}</td>' for value, shown in cells)
    return f'<tr><th scope="row" data-v="{esc(row.name)}">{esc(row.name)}</th>{body}</tr>'


def _titles(columns: Sequence[Column]) -> list[str]:
    return ["who", *(column.title for column in columns)]


def _row(row: Mapping, columns: Sequence[Column], at: int) -> str:
    # The first column sorts back to the table's own order, which is more telling than the alphabet.
    cells = "".join(_cell(row, column) for column in columns)
    return f'<tr><th scope="row" data-v="{at}">{esc(name_of(row["who"]))}</th>{cells}</tr>'


def _cell(row: Mapping, column: Column) -> str:
    value = row[column.field]
    style = f' class="text {esc(value)}"' if column.kind == "text" else ""
    return f'<td{style} data-v="{"" if value is None else esc(value)}">{esc(cell(row, column))}</td>'


def samples_part(samples: Sequence[Mapping]) -> str:
    """Responses to the same prompt side by side, behind a warning; the prompts with most methods first come first."""
    groups: dict[str, dict[str, list[Mapping]]] = {}
    for sample in samples:
        groups.setdefault(str(sample["prompt"]), {}).setdefault(str(sample.get("who", "")), []).append(sample)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))[:SHOWN_PROMPTS]
    if not ordered:
        return ""
    shown = "".join(_prompt(prompt, answers) for prompt, answers in ordered)
    return (
        "<h2>Samples</h2><details><summary>Show samples: content warning, they may be harmful or offensive</summary>"
        f'<p class="quiet">{len(ordered)} of {len(groups)} prompts, at most {SHOWN_ANSWERS} responses of one method; '
        f"all of them are in samples.jsonl.</p>{shown}</details>"
    )


def _prompt(prompt: str, answers: Mapping[str, Sequence[Mapping]]) -> str:
    known = list(NAMES)
    order = sorted(answers, key=lambda who: (known.index(who) if who in NAMES else len(known), who))
    columns = "".join(f"<div><h3>{esc(name_of(who))}</h3>{_answers(answers[who])}</div>" for who in order)
    return f'<section class="prompt"><p class="ask">{esc(prompt)}</p><div class="answers">{columns}</div></section>'


def _answers(samples: Sequence[Mapping]) -> str:
    return "".join(
        f'<div class="answer"><div tabindex="0">{esc(sample["response"])}</div><p class="quiet">{_scores(sample)}</p></div>'
        for sample in samples[:SHOWN_ANSWERS]
    )


def _scores(sample: Mapping) -> str:
    reward, cost = finite(sample, "reward"), finite(sample, "cost")
    mark = "" if cost is None else ' <span class="unsafe">unsafe</span>' if cost > 0 else " safe"
    return f"reward {esc(fixed(reward))} · cost {esc(fixed(cost))}{mark}"


def metrics_part(metrics: Mapping) -> str:
    """Every metric, by name, folded."""
    body = "".join(f'<tr><th scope="row">{esc(key)}</th><td>{esc(metrics[key])}</td></tr>' for key in sorted(metrics))
    return (
        f"<h2>Details</h2><details><summary>All {len(metrics)} metrics</summary>"
        '<div class="wide" role="region" tabindex="0" aria-label="All metrics">'
        f'<table class="pairs">{body}</table></div></details>'
    )


def config_part(text: str) -> str:
    """config.yaml as it stands, folded."""
    return f'<details><summary>Configuration</summary><pre tabindex="0">{esc(text)}</pre></details>' if text else ""
