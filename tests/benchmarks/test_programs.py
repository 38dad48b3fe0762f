"""Every benchmark runs on a tiny shape and prints the fields that its table is made of. Nothing here is timed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "benchmarks"
SHAPE = ["--shape", "tiny", "--lengths", "6", "9", "--num-pairs", "12", "--batch-size", "4", "--precision", "32-true"]


def lines(program, *options):
    """The JSON lines of a program."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / program), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def pair_step():
    (result,) = lines("pair_step.py", *SHAPE)
    return result


def test_pair_step_counts_what_it_read(pair_step):
    result = pair_step
    assert result["pairs"] == 12
    assert result["batch_size"] == 4
    assert result["tokens"] == 12 * (6 + 2 * 9)
    assert result["padding_waste"] == 0  # all rows have one length
    assert result["pairs_per_second"] == pytest.approx(12 / result["seconds"])
    assert 0 < result["flops_utilisation"] == pytest.approx(result["floor_seconds"] / result["seconds"])
    assert result["peak_memory_gb"] > 0


def test_a_precomputed_reference_lowers_the_floor(pair_step):
    (precomputed,) = lines("pair_step.py", *SHAPE, "--precomputed")
    floors = [result["floor_seconds"] * result["matrix_gflops"] for result in (pair_step, precomputed)]
    assert floors[1] == pytest.approx(0.75 * floors[0])  # 6 of 8 operations


def test_score_counts_the_prompt_with_each_answer():
    (result,) = lines("score.py", *SHAPE)
    assert result["tokens"] == 12 * 2 * (6 + 9)


def test_generate_measures_three_ways():
    result = lines("generate.py", *SHAPE, "--new-tokens", "5")
    assert [line["who"] for line in result] == ["sample", "generate, batches of 8", "generate, same batch"]
    assert all(12 <= line["tokens"] <= 12 * 5 for line in result)


def test_relabel_times_every_kind_of_label():
    (result,) = lines("relabel.py", "--num-pairs", "1000")
    assert {"seconds_soft", "seconds_bernoulli", "seconds_argmax"} <= set(result)
