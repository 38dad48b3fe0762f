"""The house rules, checked on the tree itself: what must not grow, what must not appear, and what must agree.

A number here is a limit that was decided, not a measurement: raise one only with a reason in the commit.
"""

import ast
import configparser
import re
import subprocess
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LONGEST_BODY = 60
LONGEST_FILE = 300
LONGEST_DOOR = 40
EXCUSED_WARNINGS = 12
TEXT = {".py", ".md", ".cfg", ".toml", ".txt", ".yaml", ".yml", ".json", ".html", ".css", ".js", ".csv", ""}
RUNTIME = {
    "accelerate", "datasets", "deepspeed", "filelock", "hydra-core", "jinja2", "lightning", "matplotlib", "numpy", "omegaconf",
    "pydantic", "rich", "safetensors", "scipy", "torch", "transformers", "wandb",
}  # fmt: skip


def _files() -> list[Path]:
    """What git tracks or would track; without git, everything but what a run or an install leaves behind."""
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


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement after the docstring to the last one."""
    statements = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return statements[-1].end_lineno - statements[0].lineno + 1 if statements else 0


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
    long = [f"{name}: {f.name} has {_body_lines(f)} lines, at most {LONGEST_BODY}; split it" for f in functions
            if _body_lines(f) > LONGEST_BODY]  # fmt: skip
    too_long = [f"{name}: {lines} lines, at most {LONGEST_FILE}"] if lines > LONGEST_FILE else []
    silent = [] if ast.get_docstring(tree) else [f"{name}: a module says in its docstring what it is for"]
    return long + too_long + silent


def test_modules_of_the_package_are_short_and_documented() -> None:
    message = [fault for path in PACKAGE for fault in _faults_of_module(path)]
    assert not message, "\n".join(message)


def test_the_door_is_small() -> None:
    lines = (ROOT / "run.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONGEST_DOOR, f"run.py: {len(lines)} lines, at most {LONGEST_DOOR}; move work to the pipeline"


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


def _forbidden(node: ast.AST) -> str | None:
    roots = {name.partition(".")[0] for name in _imported(node)}
    if roots & {"pickle", "dill", "cloudpickle", "shelve"}:
        return "reads or writes code as data; use safetensors or JSON"
    if "run" in roots:
        return "imports the door, run.py"
    if isinstance(node, ast.ExceptHandler):
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        if any(kind is None or getattr(kind, "id", "") in {"Exception", "BaseException"} for kind in caught):
            return "catches everything; name what can happen"
    if isinstance(node, ast.keyword) and node.arg == "weights_only" and getattr(node.value, "value", None) is False:
        return "loads a pickle: weights_only=False"
    return None


def test_nothing_forbidden_in_the_code() -> None:
    result = [(path, node, _forbidden(node)) for path in CODE for node in ast.walk(_tree(path))]
    message = [f"{_name(path)}:{getattr(node, 'lineno', '?')} {why}" for path, node, why in result if why]
    assert not message, "\n".join(message)


def test_nothing_is_left_for_later() -> None:
    word = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    message = [f"{_name(path)}:{at}: {line.strip()}" for path in CODE for at, line in _lines(path) if word.search(line)]
    assert not message, "do it or write it down in the design:\n" + "\n".join(message)


def _lines(path: Path) -> list[tuple[int, str]]:
    return list(enumerate(path.read_text(encoding="utf-8").splitlines(), start=1))


def test_no_path_of_one_machine_in_a_tracked_file() -> None:
    """A file of this project runs from any folder of any machine."""
    location = re.compile(r"(?<![\w.:/}])/(?:work|tmp|root|home|opt)" + r"/\w")
    texts = [path for path in _files() if path.suffix in TEXT]
    message = [f"{_name(path)}:{at}: {line.strip()[:100]}" for path in texts for at, line in _lines(path) if location.search(line)]
    assert not message, "\n".join(message)


def test_the_run_time_needs_no_more_packages_than_these() -> None:
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


def test_lightning_is_pinned_exactly_and_is_no_compromised_release() -> None:
    pins = {need.name: str(need.specifier) for need in _requirements(_setup()["options"]["install_requires"])}
    assert pins["lightning"].startswith("==")
    assert pins["lightning"] not in {"==2.6.2", "==2.6.3"}


def test_the_list_of_excused_warnings_does_not_grow() -> None:
    """An excuse is for third-party code: a warning of our own is fixed."""
    excused = _setup()["tool:pytest"]["filterwarnings"].split("\n")
    lines = [line for line in excused if line]
    assert lines[0] == "error"
    assert len(lines) - 1 <= EXCUSED_WARNINGS
