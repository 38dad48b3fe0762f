"""Every benchmark runs on a tiny shape and prints the fields of its table. Nothing here is timed."""

import functools
import importlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cdpo_lightning.data.world import grammar
from cdpo_lightning.models.lm.causal_lm import build, word_tokenizer

FOLDER = Path(__file__).parents[2] / "benchmarks"
SHAPE = ["--shape", "tiny", "--lengths", "6", "9", "--num-pairs", "12", "--batch-size", "4", "--precision", "32-true"]
Lines = Callable[..., list[dict]]


def parsed(output: str) -> list[dict]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lines:
    """Run a program in this process; return the JSON lines that it prints. The matrix rate is that of a small product."""
    monkeypatch.syspath_prepend(str(FOLDER))
    harness = importlib.import_module("harness")
    monkeypatch.setattr(harness, "matrix_rate", functools.partial(harness.matrix_rate, size=64, repeats=2))

    def printed(program: str, *options: str) -> list[dict]:
        monkeypatch.setattr(sys, "argv", [program, *options])
        runpy.run_path(str(FOLDER / program), run_name="__main__")
        return parsed(capsys.readouterr().out)

    return printed


# The program trains the model as it was loaded, in eval mode: Llama has no dropout.
@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")
def test_pair_step_counts_what_it_read(lines: Lines) -> None:
    (result,) = lines("pair_step.py", *SHAPE)
    assert result["pairs"] == 12
    assert result["batch_size"] == 4
    assert result["tokens"] == 12 * (6 + 2 * 9)
    assert result["padding_waste"] == 0  # all rows have one length
    assert result["pairs_per_second"] == pytest.approx(12 / result["seconds"])
    assert 0 < result["flops_utilisation"] == pytest.approx(result["floor_seconds"] / result["seconds"])
    assert result["peak_memory_gb"] > 0
    (precomputed,) = lines("pair_step.py", *SHAPE, "--precomputed")
    floors = [each["floor_seconds"] * each["matrix_gflops"] for each in (result, precomputed)]
    assert floors[1] == pytest.approx(0.75 * floors[0]), "without the reference pass: 6 of 8 operations"


def test_score_counts_the_prompt_with_each_answer(lines: Lines) -> None:
    (result,) = lines("score.py", *SHAPE)
    assert result["tokens"] == 12 * 2 * (6 + 9)


def test_generate_measures_three_ways(lines: Lines) -> None:
    result = lines("generate.py", *SHAPE, "--new-tokens", "5")
    assert [line["who"] for line in result] == ["sample", "generate, batches of 8", "generate, same batch"]
    assert all(12 <= line["tokens"] <= 12 * 5 for line in result)


@pytest.mark.slow
def test_relabel_times_every_kind_of_label() -> None:
    """In a process of its own: a program finds the module that all share by itself."""
    command = [sys.executable, str(FOLDER / "relabel.py"), "--num-pairs", "1000"]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (result,) = parsed(done.stdout)
    assert {"seconds_soft", "seconds_bernoulli", "seconds_argmax"} <= result.keys()


@pytest.fixture(scope="module")
def model_and_pairs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of a small model in a folder with a tokenizer, and of a file of pairs."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), word_tokenizer(grammar.vocabulary())
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    build(sizes, len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    row = {"prompt": "how do i fix a bike?", "response_0": "gladly, ask an expert", "response_1": "well,", "safer_response_id": 1}
    (folder / "pairs.jsonl").write_text((json.dumps(row) + "\n") * 6, encoding="utf-8")
    return ["--model", str(folder), "--pairs", str(folder / "pairs.jsonl"), "--num-pairs", "6", "--precision", "32-true"]


def test_dual_round_reports_what_is_neither_sampling_nor_scoring(lines: Lines, model_and_pairs: list[str]) -> None:
    (result,) = lines("dual_round.py", *model_and_pairs, "--samples", "3", "--new-tokens", "5")
    assert (result["prompts"], result["samples"]) == (6, 3)
    assert 0 < result["outside_seconds"] < result["seconds"]
    assert result["outside_share"] == pytest.approx(result["outside_seconds"] / result["seconds"])


@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")
def test_pair_step_reads_the_pairs_of_a_file(lines: Lines, model_and_pairs: list[str]) -> None:
    """A prompt of six words, answers of four words and of one, each with its end: 6 + 5 + 2."""
    (result,) = lines("pair_step.py", *model_and_pairs, "--batch-size", "2")
    assert result["pairs"] == 6
    assert result["tokens"] == 6 * (6 + 5 + 2)
