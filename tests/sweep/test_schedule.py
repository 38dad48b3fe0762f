"""The schedule of a sweep with real processes that stand in for runs: order, failures, interruption, resuming, devices."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cdpo_lightning.sweep.devices import DevicePool, visible_devices
from cdpo_lightning.sweep.jobs import Job, JobIndex, JobResult
from cdpo_lightning.sweep.processes import start_job
from cdpo_lightning.sweep.schedule import Schedule
from cdpo_lightning.sweep.screen import SweepScreen, duration, summary, time_left

ROOT = Path(__file__).resolve().parent.parent.parent
# Records its start and its devices, waits, and then writes metrics.json or fails.
STUB_JOB = """
import json, os, signal, sys, time
from pathlib import Path
folder, seconds, status = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
folder.mkdir(parents=True, exist_ok=True)
(folder / "identity").write_text("x")
with (folder / "starts").open("a") as file:
    file.write(" ".join(sys.argv[4:] + [os.environ.get("CUDA_VISIBLE_DEVICES", "")]).strip() + chr(10))
print("working", flush=True)
until = time.time() + seconds
while time.time() < until:
    time.sleep(0.01)
if status:
    print("the reason"); sys.exit(status)
(folder / "metrics.json").write_text("{}")
"""


def job(folder: Path, number: int, seconds: float = 0, status: int = 0, devices: int = 0, refusal: str = "") -> Job:
    command = (sys.executable, "-c", STUB_JOB, str(folder / str(number)), str(seconds), str(status))
    run_dir, log = folder / str(number), folder / "logs" / f"{number}.txt"
    return Job(number, f"id{number}", (f"x={number}",), run_dir, log, command, {}, devices, refusal)


def starts(folder: Path, number: int) -> list[str]:
    return (folder / str(number) / "starts").read_text().splitlines()


def states(folder: Path) -> dict[int, str]:
    return {entry["number"]: entry["state"] for entry in json.loads((folder / "jobs.json").read_text())["jobs"]}


def run(folder: Path, jobs: list[Job], max_parallel: int = 2, devices: tuple[str, ...] = ()) -> list[JobResult]:
    return Schedule(folder, jobs, JobIndex(folder), max_parallel, devices).run()


def test_a_failed_job_is_reported_at_once_and_stops_no_other_job(tmp_path: Path, capsys) -> None:
    jobs = [job(tmp_path, 0, status=3), job(tmp_path, 1, status=2), job(tmp_path, 2), job(tmp_path, 3, refusal="beta: no")]
    results = run(tmp_path, jobs, max_parallel=1)
    assert [result.status for result in results] == [3, 2, 0, 2]
    assert states(tmp_path) == {0: "failed", 1: "failed", 2: "done", 3: "failed"}
    errors = capsys.readouterr().err
    assert (
        errors.index("error: job 3 (x=3): beta: no")
        < errors.index("job 0 (x=0) failed with status 3")
        < errors.index("job 1 (x=1)")
    )
    assert "    the reason\n" in errors
    assert "error: job 1 (x=1): the reason" in errors
    text = "\n".join(summary(results, tmp_path, "python run.py -m"))
    assert text.startswith("1 of 4 jobs done")
    assert "job 0 (x=0), status 3" in text
    assert "    the reason" in text
    assert not (tmp_path / "3").exists()


def test_a_second_sweep_skips_done_jobs_and_resumes_failed_ones(tmp_path: Path) -> None:
    run(tmp_path, [job(tmp_path, 0), job(tmp_path, 1, status=1)])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "0").iterdir()}
    results = run(tmp_path, [job(tmp_path, 0), job(tmp_path, 1)])
    assert [(result.status, result.skipped) for result in results] == [(0, True), (0, False)]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "0").iterdir()} == before
    assert starts(tmp_path, 1) == ["", "resume=true"]


@pytest.mark.slow
def test_at_most_max_parallel_jobs_run_at_a_time(tmp_path: Path) -> None:
    begin = time.monotonic()
    run(tmp_path, [job(tmp_path, number, seconds=0.6) for number in range(4)], max_parallel=2)
    assert time.monotonic() - begin > 1.2


def test_each_job_gets_the_devices_that_it_needs(tmp_path: Path) -> None:
    run(tmp_path, [job(tmp_path, n, 0.3, devices=d) for n, d in enumerate((1, 1, 2, 0))], max_parallel=4, devices=("4", "7"))
    assert {starts(tmp_path, 0)[0], starts(tmp_path, 1)[0]} == {"4", "7"}
    assert starts(tmp_path, 2) in (["4,7"], ["7,4"])
    assert starts(tmp_path, 3) == [os.environ.get("CUDA_VISIBLE_DEVICES", "")]


def test_the_pool_gives_a_job_different_devices_the_least_used_first() -> None:
    pool = DevicePool(["0", "0", "1"])
    assert pool.acquire(2) == ("0", "1")
    assert pool.acquire(2) is None
    assert pool.acquire(1) == ("0",)
    pool.release(("0", "1"))
    assert pool.acquire(2) == ("0", "1")


def test_visible_devices_follow_cuda_visible_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("", []), ("2,5", ["2", "5"]), ("-1", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert visible_devices() == expected


def test_the_number_of_a_job_never_changes(tmp_path: Path) -> None:
    index = JobIndex(tmp_path)
    assert [index.number(name) for name in ("a", "b", "a")] == [0, 1, 2], "a configuration that is given twice is run twice"
    index.write()
    again = JobIndex(tmp_path)
    assert [again.number(name) for name in ("c", "b", "a", "a", "a")] == [3, 1, 0, 2, 4]


LAUNCHER = """
import signal, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from test_schedule import job, run
folder = Path(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest in the background would ignore SIGINT
try:
    run(folder, [job(folder, n, seconds) for n, seconds in enumerate((0, 1.5, {long}))])
except KeyboardInterrupt:
    sys.exit(130)
"""


def launcher(folder: Path, long: float) -> subprocess.Popen:
    """A sweep of three jobs in a process of its own, the last of which takes `long` seconds; returns when two of them run."""
    text = LAUNCHER.format(root=str(ROOT), tests=str(Path(__file__).parent), long=long)
    process = subprocess.Popen([sys.executable, "-c", text, str(folder)], stderr=subprocess.PIPE, text=True)
    while not ((folder / "2" / "starts").exists() and (folder / "0" / "metrics.json").exists()):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_leaves_no_process_behind(tmp_path: Path, how: signal.Signals) -> None:
    process = launcher(tmp_path, 600)
    process.send_signal(how)
    assert process.wait(timeout=120) == 130
    process.stderr.close()
    with (tmp_path / "logs" / "2.lock").open() as lock:
        assert not running(int(lock.read()))
    assert states(tmp_path)[2] == "waiting"


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_killed_sweep_started_again_waits_for_jobs_that_still_run(tmp_path: Path) -> None:
    """kill -9 of the sweep leaves its jobs alive: the next sweep neither starts them twice nor loses them."""
    process = launcher(tmp_path, 3)
    process.kill()
    process.communicate()
    results = run(tmp_path, [job(tmp_path, 0), job(tmp_path, 1, 1.5), job(tmp_path, 2, 3)])
    assert [result.status for result in results] == [0, 0, 0]
    assert [len(starts(tmp_path, number)) for number in range(3)] == [1, 1, 1]


@pytest.mark.slow
def test_an_adopted_job_that_is_killed_is_started_again(tmp_path: Path) -> None:
    left = start_job(job(tmp_path, 0, 600), ())
    while not (tmp_path / "0" / "starts").exists():
        time.sleep(0.01)
    killer = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(1); os.killpg({left._process.pid}, 9)"])
    schedule = Schedule(tmp_path, [job(tmp_path, 0)], JobIndex(tmp_path), 1, ())
    results = schedule.run()
    killer.wait()
    left._process.wait()
    assert results[0].status == 0
    assert starts(tmp_path, 0) == ["", "resume=true"]


def test_the_screen_prints_nothing_without_a_terminal(tmp_path: Path, capsys) -> None:
    run(tmp_path, [job(tmp_path, 0)])
    assert capsys.readouterr() == ("", "")


def test_the_screen_shows_the_progress(tmp_path: Path) -> None:
    one = start_job(job(tmp_path, 1, 600), ())
    while not one.last_lines(1):
        time.sleep(0.01)
    lines = SweepScreen(tmp_path, 4, 2).lines([one], [JobResult(job(tmp_path, 0), 0, 100.0), JobResult(job(tmp_path, 3), 1, 1.0)])
    one.signal(signal.SIGKILL)
    one._process.wait()
    assert lines[0].startswith("2 of 4 jobs · 1 running · 1 failed · ")
    assert lines[0].endswith(" · about 100 s left") or "about 2 min left" in lines[0]
    assert lines[1] == "    1  working"


def test_the_time_left_by_hand() -> None:
    """Jobs took 100 s on average; one has run 40 s, three wait, two run at a time: (60 + 300) / 2 = 180 s."""
    done = [JobResult(job(Path(), n), 0, seconds) for n, seconds in enumerate((90.0, 110.0))]
    assert time_left(done, [40.0], 3, 2) == 180
    assert time_left(done, [40.0], 0, 2) == 60
    assert time_left([], [40.0], 3, 2) is None
    assert [duration(s) for s in (40, 119, 5 * 3600 + 61)] == ["40 s", "2 min", "5 h 01 min"]
