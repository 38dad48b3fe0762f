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
    (found,) = lines("pair_step.py", *SHAPE)
    return found


def test_pair_step_counts_what_it_read(pair_step):
    found = pair_step
    assert found["pairs"] == 12
    assert found["batch_size"] == 4
    assert found["tokens"] == 12 * (6 + 2 * 9)
    assert found["padding_waste"] == 0  # all rows have one length
    assert found["pairs_per_second"] == pytest.approx(12 / found["seconds"])
    assert 0 < found["flops_utilisation"] == pytest.approx(found["floor_seconds"] / found["seconds"])
    assert found["peak_memory_gb"] > 0


def test_a_precomputed_reference_lowers_the_floor(pair_step):
    (precomputed,) = lines("pair_step.py", *SHAPE, "--precomputed")
    floors = [found["floor_seconds"] * found["matrix_gflops"] for found in (pair_step, precomputed)]
    assert floors[1] == pytest.approx(0.75 * floors[0])  # 6 of 8 operations


def test_score_counts_the_prompt_with_each_answer():
    (found,) = lines("score.py", *SHAPE)
    assert found["tokens"] == 12 * 2 * (6 + 9)


def test_generate_measures_three_ways():
    found = lines("generate.py", *SHAPE, "--new-tokens", "5")
    assert [line["who"] for line in found] == ["sample", "generate, batches of 8", "generate, same batch"]
    assert all(12 <= line["tokens"] <= 12 * 5 for line in found)


def test_relabel_times_every_kind_of_label():
    (found,) = lines("relabel.py", "--num-pairs", "1000")
    assert {"seconds_soft", "seconds_bernoulli", "seconds_argmax"} <= set(found)
