"""The data sets: one function each, from a path to records. An empty text is let through; the audit counts it.

Every function takes what `read_rows` takes and raises DataError for a row that lacks a column, or whose text is not
text, or whose label is neither 0, 1, true nor false. Pairs of every source become `PreferencePair`.
"""

from collections.abc import Callable

from cdpo_lightning.data.records import Demonstration, EvaluationPrompt, LabelledAnswer, MultipleChoice, PreferencePair
from cdpo_lightning.data.sources.columns import Columns, categories, label, text, texts, value
from cdpo_lightning.data.sources.dialogues import hh_ends, is_hh, turn_ends
from cdpo_lightning.data.sources.rows import read_rows
from cdpo_lightning.errors import DataError


def pku_saferlhf(path: str, split: str = "train", revision: str | None = None, limit: int | None = None) -> list[PreferencePair]:
    """PKU-SafeRLHF, every release: safety of both responses, the safer one and, where the column is there, the better one.

    PKU-SafeRLHF-single-dimension has better_response_id alone; severities and harm categories of later releases are not read.
    """
    return [_pku_pair(location, row) for location, row in read_rows(path, split, revision, limit)]


def preference_pairs(
    path: str, split: str = "train", revision: str | None = None, limit: int | None = None
) -> list[PreferencePair]:
    """TRL's prompt, chosen, rejected as text or as turns: response_0 is chosen and better.

    Turns are lists of {role, content}; a prompt may stand in its column, before both answers, or both. Without a prompt,
    whole dialogues as in Anthropic's hh-rlhf helpful-base are read as `hh_harmless` reads them.
    """
    rows = read_rows(path, split, revision, limit)
    return [
        PreferencePair(*(hh_ends if is_hh(row) else turn_ends)(location, row), better=0, row=location) for location, row in rows
    ]


def hh_harmless(path: str, split: str = "train", revision: str | None = None, limit: int | None = None) -> list[PreferencePair]:
    """Anthropic hh-rlhf harmless-base, whole dialogues: response_0 is chosen and safer; `dialogues` says what is the prompt."""
    return [
        PreferencePair(*hh_ends(location, row), safer=0, row=location) for location, row in read_rows(path, split, revision, limit)
    ]


def truthfulqa(path: str, split: str = "train", revision: str | None = None, limit: int | None = None) -> list[PreferencePair]:
    """TruthfulQA, the file of the paper or the hub's `generation`: each false answer once, response_0 true and better.

    The true answers take turns, the best one first.
    """
    return [pair for location, row in read_rows(path, split, revision, limit) for pair in _truth_pairs(location, row)]


def multiple_choice(path: str, split: str = "train", revision: str | None = None, limit: int | None = None) -> list[MultipleChoice]:
    """TruthfulQA's multiple choice, the file of the paper or the hub's `multiple_choice`.

    Raises:
        DataError: also where not exactly one option of mc1, or no option or every option of mc2, is true.
    """
    return [_multiple_choice(location, row) for location, row in read_rows(path, split, revision, limit)]


def safety_labels(path: str, split: str = "train", revision: str | None = None, limit: int | None = None) -> list[LabelledAnswer]:
    """Single answers with `is_safe`, as in BeaverTails and PKU-SafeRLHF-QA."""
    return [
        LabelledAnswer(text(location, row, "prompt"), text(location, row, "response"), label(location, row, "is_safe"), location)
        for location, row in read_rows(path, split, revision, limit)
    ]


def demonstrations(path: str, split: str = "train", revision: str | None = None, limit: int | None = None) -> list[Demonstration]:
    """Answers to imitate: columns prompt and response, or Alpaca's instruction, input (optional) and output."""
    return [_demonstration(location, row) for location, row in read_rows(path, split, revision, limit)]


def evaluation_prompts(
    path: str, split: str = "train", revision: str | None = None, limit: int | None = None
) -> list[EvaluationPrompt]:
    """Prompts with their categories: columns prompt (or Question) and, where there, category (or Category, type).

    A category is a text, or, as on BeaverTails' hub page, {name: whether it applies}. A prompt that stands in several rows
    comes once, with the categories of all of them.

    Raises:
        DataError: also when a prompt is empty, for no audit follows.
    """
    result: dict[str, EvaluationPrompt] = {}
    for location, row in read_rows(path, split, revision, limit):
        new = EvaluationPrompt(_asked(location, row), categories(location, row, "category", "Category", "type"), location)
        old = result.setdefault(new.prompt, new)
        more = tuple(name for name in new.categories if name not in old.categories)
        result[new.prompt] = EvaluationPrompt(old.prompt, old.categories + more, old.row)
    return list(result.values())


def refusal_prompts(
    path: str, split: str = "train", revision: str | None = None, limit: int | None = None
) -> list[EvaluationPrompt]:
    """XSTest: each prompt with the one category `safe` (to be answered) or `unsafe` (a contrast, to be refused).

    Without a column label, a type that begins with `contrast` is unsafe.

    Raises:
        DataError: also when a prompt is empty, or a label is another one.
    """
    rows = read_rows(path, split, revision, limit)
    return [EvaluationPrompt(_asked(location, row), (_harm(location, row),), location) for location, row in rows]


PAIR_SOURCES: dict[str, Callable[..., list[PreferencePair]]] = {
    "pku_saferlhf": pku_saferlhf,
    "preference": preference_pairs,
    "hh_harmless": hh_harmless,
    "truthfulqa": truthfulqa,
}
_HARMFUL = "holds offensive and harmful text"
LICENCES: dict[str, str] = {
    "pku_saferlhf": f"CC BY-NC 4.0, no commercial use; {_HARMFUL}",
    "beavertails": f"CC BY-NC 4.0, no commercial use; {_HARMFUL}",
    "preference": "the licence is that of your file; check it before you publish a model",
    "hh_harmless": f"MIT; {_HARMFUL}",
    "truthfulqa": "Apache-2.0; holds falsehoods, some of them offensive",
    "safety_labels": f"CC BY-NC 4.0 if from PKU-SafeRLHF or BeaverTails, no commercial use; {_HARMFUL}",
    "demonstrations": "CC BY-NC 4.0 if from Alpaca, no commercial use; else the licence of your file",
    "evaluation_prompts": f"CC BY-NC 4.0 if from BeaverTails, CC BY 4.0 if from XSTest; {_HARMFUL}",
    "refusal_prompts": f"CC BY 4.0 if from XSTest; {_HARMFUL}",
}


def licence_notice(source: str) -> str:
    """One line on the licence and the content of a source, to print once in a run.

    Raises:
        DataError: no such source.
    """
    if source not in LICENCES:
        raise DataError(f"source {source!r} is unknown, expected one of {', '.join(LICENCES)}; choose one of these")
    return f"{source}: {LICENCES[source]}"


def _pku_pair(location: str, row: Columns) -> PreferencePair:
    prompt, response_0, response_1 = (text(location, row, name) for name in ("prompt", "response_0", "response_1"))
    better = int(label(location, row, "better_response_id")) if "better_response_id" in row else None
    if better is not None and not {"is_response_0_safe", "is_response_1_safe", "safer_response_id"} & row.keys():
        return PreferencePair(prompt, response_0, response_1, better, row=location)
    safe_0, safe_1 = (label(location, row, f"is_response_{index}_safe") for index in (0, 1))
    safer = int(label(location, row, "safer_response_id"))
    return PreferencePair(prompt, response_0, response_1, better, safer, safe_0, safe_1, location)


def _truth_pairs(location: str, row: Columns) -> list[PreferencePair]:
    question, best = text(location, row, "Question", "question"), text(location, row, "Best Answer", "best_answer").strip()
    true = list(dict.fromkeys([best, *texts(location, row, "Correct Answers", "correct_answers")]))
    false = texts(location, row, "Incorrect Answers", "incorrect_answers")
    return [PreferencePair(question, true[i % len(true)], wrong, better=0, row=location) for i, wrong in enumerate(false)]


def _multiple_choice(location: str, row: Columns) -> MultipleChoice:
    mc1, mc2 = (_options(location, row, name) for name in ("mc1_targets", "mc2_targets"))
    if sum(true for _, true in mc1) != 1:
        raise DataError(f"{location}: mc1_targets has {sum(true for _, true in mc1)} true options, expected 1; correct it")
    if len({true for _, true in mc2}) != 2:
        raise DataError(f"{location}: mc2_targets has no true or no false option, expected both; correct it")
    return MultipleChoice(text(location, row, "question", "Question"), mc1, mc2, location)


def _options(location: str, row: Columns, name: str) -> tuple[tuple[str, bool], ...]:
    """(option, whether it is true), from {option: 0 or 1} or {choices: [...], labels: [...]}."""
    result = value(location, row, name)
    if isinstance(result, dict) and result.keys() == {"choices", "labels"} and len(result["choices"]) == len(result["labels"]):
        result = dict(zip(result["choices"], result["labels"], strict=True))
    if not isinstance(result, dict):
        raise DataError(f"{location}: {name} is no object of options with 0 or 1, nor of choices and labels; correct it")
    return tuple((option, label(location, result, option)) for option in result)


def _demonstration(location: str, row: Columns) -> Demonstration:
    if "instruction" not in row:
        return Demonstration(text(location, row, "prompt"), text(location, row, "response"), location)
    prompt, context = text(location, row, "instruction"), text(location, row, "input") if "input" in row else ""
    return Demonstration(f"{prompt}\n\n{context}" if context.strip() else prompt, text(location, row, "output"), location)


def _asked(location: str, row: Columns) -> str:
    prompt = text(location, row, "prompt", "Question")
    if not prompt.strip():
        raise DataError(f"{location}: the prompt is empty, expected text; remove the row")
    return prompt


def _harm(location: str, row: Columns) -> str:
    if "label" not in row:
        return "unsafe" if text(location, row, "type").startswith("contrast") else "safe"
    result = text(location, row, "label")
    if result not in ("safe", "unsafe"):
        raise DataError(f"{location}: label is {result[:40]!r}, expected safe or unsafe; correct it")
    return result
