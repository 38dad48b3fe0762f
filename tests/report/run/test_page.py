import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

from cdpo_lightning.report.run.page import render
from cdpo_lightning.report.run.verdict import verdict

ATTACK = "<script>alert('1')</script>\"><img src=x onerror=alert(2)>"
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """The page as a browser reads it: tags in order, attributes, text, and the tags that are still open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def _page(folder: Path) -> Page:
    return Page((folder / "report" / "index.html").read_text(encoding="utf-8"))


def test_every_tag_is_closed_and_nothing_is_loaded_from_outside(built) -> None:
    page = _page(built)
    assert page.open == []
    assert not page.all("link")
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert len(sources) == 3
    assert all(source.startswith("data:") for source in sources)
    assert "url(" not in (built / "report" / "index.html").read_text(encoding="utf-8")


def test_the_page_begins_with_name_command_convention_and_verdict(built) -> None:
    text = _page(built).text
    assert "demo/12-00" in text
    assert "python run.py +experiment=closed_form" in text
    assert "cost > 0 is harmful; E[c] <= C_limit" in text
    assert "the method reached the optimum." in text


def test_the_figures_are_embedded_and_described(built) -> None:
    images = _page(built).all("img")
    assert [image["alt"].split(" ")[0] for image in images] == ["λ", "C-DPO"]
    embedded = base64.b64decode(images[0]["src"].partition("base64,")[2])
    assert embedded == (built / "report" / "dual_rounds.png").read_bytes()


def test_the_download_is_the_csv(built) -> None:
    (link,) = _page(built).all("a")
    assert link["download"] == "table.csv"
    assert base64.b64decode(link["href"].partition("base64,")[2]) == (built / "report" / "table.csv").read_bytes()


def test_only_our_own_script_may_run(built) -> None:
    text = (built / "report" / "index.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    allowed = re.search(r"script-src 'sha256-([^']+)'", text)[1]
    assert allowed == base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def test_markup_in_a_run_is_shown_as_text(run) -> None:
    evil = dataclasses.replace(
        run,
        folder=run.folder.parent / "a<b>&amp;",
        metrics={**run.metrics, "run/command": ATTACK, f"eval/{ATTACK}/cost_mean": 1.0, "eval/cdpo/feasible": ATTACK}
        | {ATTACK: ATTACK, f"eval/cdpo/category/{ATTACK}/unsafe_rate": 0.5},
        samples=tuple(dict.fromkeys(("prompt", "response", "who", "reward", "cost"), ATTACK) for _ in range(2)),
        config_text=ATTACK,
    )
    text = render(evil, {})
    page = Page(text)
    assert page.open == []
    assert text.count("<script") == 1
    assert not page.all("img")
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(ATTACK) >= 6  # a reader sees it as it was
    assert "a<b>&amp;" in page.text, "the name of the run"
    assert ATTACK in [cell.get("data-v") for cell in page.all("th")], "the category"


def test_responses_to_one_prompt_are_side_by_side_behind_a_warning(built) -> None:
    text = (built / "report" / "index.html").read_text(encoding="utf-8")
    part = text[text.index("<h2>Samples") :]
    assert part.index("content warning") < part.index("How?")
    assert part.count('class="prompt"') == 2
    first = part[: part.index("Why?")]
    assert first.index("dpo says") < first.index("cdpo says")  # the table's order
    assert '<span class="unsafe">unsafe</span>' in first
    assert "2 of 2 prompts" in part


def test_the_page_says_how_many_of_many_samples_it_shows(run) -> None:
    many = [{"prompt": f"p{at}", "response": f"r{at}-{again}", "who": "dpo"} for at in range(50) for again in range(9)]
    text = render(dataclasses.replace(run, samples=tuple(many)), {})
    assert "24 of 50 prompts" in text
    assert "r0-2" in text
    assert "r0-3" not in text
    assert "p24<" not in text


def test_a_section_without_content_is_left_out(run) -> None:
    text = render(dataclasses.replace(run, metrics={}, rounds=(), samples=(), config_text=""), {})
    assert not any(part in text for part in ("<h2>Figures", "<h2>Samples", "Configuration"))
    assert "No policy was evaluated" in text


def test_the_table_can_be_sorted_by_value_from_the_keyboard(run) -> None:
    page = Page(render(run, {}))
    tables = [attributes for attributes in page.all("table") if attributes.get("class") == "sortable"]
    assert len(tables) == 2
    assert all(attributes["type"] == "button" for attributes in page.all("button"))
    cells = [attributes["data-v"] for attributes in page.all("td") if "data-v" in attributes]
    assert {"-0.29", "undecided", ""} <= set(cells)
    assert all(region.get("tabindex") == "0" for region in page.all("div") if region.get("role") == "region")


def test_all_metrics_and_the_configuration_are_shown(run) -> None:
    page = Page(render(run, {}))
    assert all(key in page.text for key in run.metrics)
    assert run.config_text in page.text
    assert verdict(run.metrics) in page.text
