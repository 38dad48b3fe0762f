"""The rules of the code base, checked on the tree itself: limits of size, forbidden constructs, and files that must agree.

A number here is a limit that was decided, not a measurement: raise one only with a reason in the commit.
"""

import ast
import configparser
import itertools
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LONGEST_FUNCTION = 43  # lines from `def` to the end, docstring included
LONGEST_FILE = 230
LONGEST_RUN_PY = 40
LARGEST_FOLDER = 9  # code files, __init__.py included
TEXT = {".py", ".md", ".cfg", ".toml", ".txt", ".yaml", ".yml", ".json", ".html", ".css", ".js", ".csv", ""}
RUNTIME = {
    "accelerate", "datasets", "deepspeed", "filelock", "hydra-core", "jinja2", "lightning", "matplotlib", "numpy", "omegaconf",
    "pydantic", "rich", "safetensors", "scipy", "torch", "transformers", "wandb",
}  # fmt: skip
# Private jargon of earlier versions; docs/design.md has the terms that replace it.
BANNED = {
    "Bench", "bench", "Court", "court", "Judge", "judge", "convene", "visitors", "spending", "Spent", "settle_rows", "at_rest",
    "at_work", "wording", "door", "apart", "optimism", "recipe", "Recipe", "people", "found", "said", "asked", "stands", "place",
    "beside",
}  # fmt: skip


def _files() -> list[Path]:
    """Return the files that git tracks or would track; without git, all files but those that a run or an install leaves behind."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listing.returncode == 0:
        result = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        left = {"artifacts", "outputs", "multirun", "wandb", "lightning_logs", "build", "__pycache__"}
        inside = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        kept = [p for p in inside if not any(part in left or part.startswith(".") for part in p.parts)]
        result = [ROOT / path for path in kept if not any(part.endswith(".egg-info") for part in path.parts)]
    return sorted(path for path in result if path.is_file() and ".ci" not in path.relative_to(ROOT).parts)


def _python(*folders: str) -> list[Path]:
    parts = [path.relative_to(ROOT) for path in _files() if path.suffix == ".py"]
    return [ROOT / path for path in parts if path.parts[0] in folders]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


PACKAGE = _python("cdpo_lightning")
CODE = _python("cdpo_lightning", "run.py", "benchmarks", "tests")


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return function.end_lineno - function.lineno + 1


def _setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def _requirements(block: str) -> list[Requirement]:
    return [Requirement(line) for line in block.splitlines() if line.strip()]


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def _faults_of_module(path: Path) -> list[str]:
    tree, name, lines = _tree(path), _name(path), len(_lines(path))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [f"{name}: {f.name} has {_lines_of(f)} lines, at most {LONGEST_FUNCTION}; split it" for f in functions
            if _lines_of(f) > LONGEST_FUNCTION]  # fmt: skip
    too_long = [f"{name}: {lines} lines, at most {LONGEST_FILE}"] if lines > LONGEST_FILE else []
    undocumented = [] if ast.get_docstring(tree) else [f"{name}: no docstring; state the purpose of the module"]
    return long + too_long + undocumented


def test_modules_of_the_package_are_short_and_documented() -> None:
    message = [fault for path in PACKAGE for fault in _faults_of_module(path)]
    assert not message, "\n".join(message)


def test_no_folder_of_the_package_has_too_many_files() -> None:
    counts = Counter(path.parent for path in PACKAGE)
    message = [f"{_name(folder)}: {count} code files, at most {LARGEST_FOLDER}" for folder, count in sorted(counts.items())
               if count > LARGEST_FOLDER]  # fmt: skip
    assert not message, "\n".join(message)


def test_run_py_is_short() -> None:
    lines = len(_lines(ROOT / "run.py"))
    assert lines <= LONGEST_RUN_PY, f"run.py: {lines} lines, at most {LONGEST_RUN_PY}; move work to the pipeline"


def _identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield every name that the code defines or uses (variable, argument, function, class, attribute, import) and its line."""
    for node in ast.walk(tree):
        names: list[str | None] = [getattr(node, field, None) for field in ("id", "arg", "attr", "name", "asname", "rest")]
        names += [*getattr(node, "names", [])] if isinstance(node, ast.Global | ast.Nonlocal) else []
        names += (node.module or "").split(".") if isinstance(node, ast.ImportFrom) else []
        for name in names:
            if isinstance(name, str):
                yield from ((part, getattr(node, "lineno", 0)) for part in name.split("."))


def test_banned_words_are_no_identifiers() -> None:
    sources = [*PACKAGE, ROOT / "run.py"]
    uses = {(_name(path), name): at for path in sources for name, at in _identifiers(_tree(path)) if name in BANNED}
    message = {f"{path}:{at}: {name}" for (path, name), at in uses.items()}
    message |= {_name(path) for path in sources if BANNED & {*path.relative_to(ROOT).with_suffix("").parts}}
    assert not message, "rename to a term of the field:\n" + "\n".join(sorted(message))


def _equation_table() -> list[tuple[str, str]]:
    """Return the first cell and the cell of the column `function`, of every row of the equation table in docs/design.md."""
    lines = [line for _, line in _lines(ROOT / "docs" / "design.md")]
    start = next(at for at, line in enumerate(lines) if re.match(r"\|\s*equation\s*\|", line))
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in itertools.takewhile(lambda line: line.startswith("|"), lines[start:])]  # fmt: skip
    column = rows[0].index("function")
    return [(row[0], row[column]) for row in rows[2:]]


def _defines(file: Path, name: str) -> bool:
    """Return whether the module defines the function, class or, as `Class.method`, the method."""
    body: list[ast.stmt] = _tree(file).body
    for part in name.split("."):
        definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        node = next((node for node in body if isinstance(node, definitions) and node.name == part), None)
        if node is None:
            return False
        body = node.body
    return True


def _unresolved(cell: str) -> list[str]:
    """Return the back-quoted names of a cell that are no file, function or class of the package.

    `folder/file.py` and `folder/file.name` are relative to the package, `file.name` to cdpo_lightning/maths; a name without a file
    is in the file named last.
    """
    wrong, file = [], None
    for quoted in re.findall(r"`([^`]+)`", cell):
        path, name = re.fullmatch(r"((?:\w+/)*)(.*)", quoted).groups()
        folder = ROOT / "cdpo_lightning" / (path or "maths/")
        module, _, rest = name.removesuffix("()").partition(".")
        if rest == "py" or (folder / f"{module}.py").is_file():
            file, name = folder / f"{module}.py", "" if rest == "py" else rest
        if file is None or not file.is_file() or (name and not _defines(file, name.removesuffix("()"))):
            wrong.append(quoted)
    return wrong


def test_every_equation_of_the_design_names_its_function() -> None:
    rows = _equation_table()
    assert len(rows) >= 20, "the table holds every equation of the method and of the baselines"
    message = [f"{equation}: {name} does not exist" for equation, cell in rows for name in _unresolved(cell)]
    message += [f"{equation}: names no function" for equation, cell in rows if "`" not in cell]
    assert not message, "\n".join(message)


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


def _forbidden(node: ast.AST) -> str | None:
    roots = {name.partition(".")[0] for name in _imported(node)}
    if roots & {"pickle", "dill", "cloudpickle", "shelve"}:
        return "reads or writes code as data; use safetensors or JSON"
    if "run" in roots:
        return "imports run.py, the command line; import cdpo_lightning"
    if isinstance(node, ast.ExceptHandler):
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        if any(kind is None or getattr(kind, "id", "") in {"Exception", "BaseException"} for kind in caught):
            return "catches every exception; name the types"
    if isinstance(node, ast.keyword) and node.arg == "weights_only" and getattr(node.value, "value", None) is False:
        return "loads a pickle: weights_only=False"
    return None


def test_the_code_has_no_forbidden_construct() -> None:
    result = [(path, node, _forbidden(node)) for path in CODE for node in ast.walk(_tree(path))]
    message = [f"{_name(path)}:{getattr(node, 'lineno', '?')} {why}" for path, node, why in result if why]
    assert not message, "\n".join(message)


def test_the_code_has_no_to_do_comment() -> None:
    word = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    message = [f"{_name(path)}:{at}: {line.strip()}" for path in CODE for at, line in _lines(path) if word.search(line)]
    assert not message, "do it, or describe it in docs/design.md:\n" + "\n".join(message)


def _lines(path: Path) -> list[tuple[int, str]]:
    return list(enumerate(path.read_text(encoding="utf-8").splitlines(), start=1))


def test_no_tracked_file_has_an_absolute_path_of_one_machine() -> None:
    """The project works in any folder of any machine."""
    location = re.compile(r"(?<![\w.:/}])/(?:work|tmp|root|home|opt)" + r"/\w")
    texts = [path for path in _files() if path.suffix in TEXT]
    message = [f"{_name(path)}:{at}: {line.strip()[:100]}" for path in texts for at, line in _lines(path) if location.search(line)]
    assert not message, "\n".join(message)


def test_a_run_needs_only_the_listed_packages() -> None:
    requested = {canonicalize_name(need.name) for need in _requirements(_setup()["options"]["install_requires"])}
    assert requested == RUNTIME


def test_every_requirement_is_pinned_inside_its_range() -> None:
    setup, pins = _setup(), _pins()
    needs = _requirements(setup["options"]["install_requires"])
    needs += [need for block in setup["options.extras_require"].values() for need in _requirements(block)]
    wrong = [f"{need} (constraints.txt: {pins.get(canonicalize_name(need.name), 'missing')})" for need in needs
             if not need.specifier.contains(pins.get(canonicalize_name(need.name), "0"))]  # fmt: skip
    assert not wrong, "\n".join(wrong)


def test_constraints_are_exact_versions_and_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    odd = [line for line in lines if line and not line.startswith("#") and not re.fullmatch(r"[\w.-]+==[\w.]+", line)]
    assert not odd, f"no addresses, paths or local versions: {odd}"


def test_lightning_is_pinned_to_an_uncompromised_release() -> None:
    pins = {need.name: str(need.specifier) for need in _requirements(_setup()["options"]["install_requires"])}
    assert pins["lightning"].startswith("==")
    assert pins["lightning"] not in {"==2.6.2", "==2.6.3"}


def test_every_warning_is_an_error_unless_a_library_of_others_gives_it() -> None:
    """A warning of our own is fixed; the comment above an exemption begins with the library that warns."""
    block = (ROOT / "setup.cfg").read_text(encoding="utf-8").partition("filterwarnings =\n")[2].partition("\n[")[0]
    first, *lines = [line.strip() for line in block.splitlines() if line.strip()]
    assert first == "error"
    for comment, line in zip(["", *lines], lines, strict=False):
        if not line.startswith("#"):
            library = re.match(r"# ([\w-]+)", comment)
            assert library, f"{line}: no comment above it"
            assert canonicalize_name(library[1]) in _pins(), f"{line}: {library[1]} is no library of constraints.txt"
