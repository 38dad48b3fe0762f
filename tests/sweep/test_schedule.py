"""A sweep's jobs as real processes, small scripts in place of runs: order, failures, interruption, going on, devices."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cdpo_lightning.sweep.devices import Pool, found_devices
from cdpo_lightning.sweep.jobs import Ended, Index, Job
from cdpo_lightning.sweep.processes import start
from cdpo_lightning.sweep.schedule import Schedule
from cdpo_lightning.sweep.screen import SweepScreen, duration, summary, time_left

ROOT = Path(__file__).resolve().parent.parent.parent
# Notes its start and its devices, waits, and leaves figures unless it is told to fail.
WORK = """
import json, os, signal, sys, time
from pathlib import Path
folder, seconds, status = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
folder.mkdir(parents=True, exist_ok=True)
(folder / "identity").write_text("x")
with (folder / "starts").open("a") as file:
    file.write(" ".join(sys.argv[4:] + [os.environ.get("CUDA_VISIBLE_DEVICES", "")]).strip() + chr(10))
print("at work", flush=True)
until = time.time() + seconds
while time.time() < until:
    time.sleep(0.01)
if status:
    print("the reason"); sys.exit(status)
(folder / "metrics.json").write_text("{}")
"""


def job(folder: Path, number: int, seconds: float = 0, status: int = 0, devices: int = 0, refusal: str = "") -> Job:
    command = (sys.executable, "-c", WORK, str(folder / str(number)), str(seconds), str(status))
    location, log = folder / str(number), folder / "logs" / f"{number}.txt"
    return Job(number, f"id{number}", (f"x={number}",), location, log, command, {}, devices, refusal)


def starts(folder: Path, number: int) -> list[str]:
    return (folder / str(number) / "starts").read_text().splitlines()


def states(folder: Path) -> dict[int, str]:
    return {entry["number"]: entry["state"] for entry in json.loads((folder / "jobs.json").read_text())["jobs"]}


def run(folder: Path, jobs: list[Job], places: int = 2, devices: tuple[str, ...] = ()) -> list[Ended]:
    return Schedule(folder, jobs, Index(folder), places, devices).run()


def test_a_job_that_fails_stops_no_other_and_is_said_when_it_fails(tmp_path: Path, capsys) -> None:
    jobs = [job(tmp_path, 0, status=3), job(tmp_path, 1, status=2), job(tmp_path, 2), job(tmp_path, 3, refusal="beta: no")]
    ended = run(tmp_path, jobs, places=1)
    assert [one.status for one in ended] == [3, 2, 0, 2]
    assert states(tmp_path) == {0: "failed", 1: "failed", 2: "done", 3: "failed"}
    message = capsys.readouterr().err
    assert (
        message.index("error: job 3 (x=3): beta: no")
        < message.index("job 0 (x=0) failed with status 3")
        < message.index("job 1 (x=1)")
    )
    assert "    the reason\n" in message
    assert "error: job 1 (x=1): the reason" in message
    text = "\n".join(summary(ended, tmp_path, "python run.py -m"))
    assert text.startswith("1 of 4 jobs done")
    assert "job 0 (x=0), status 3" in text
    assert "    the reason" in text
    assert not (tmp_path / "3").exists()


def test_started_again_the_done_are_left_alone_and_the_failed_go_on(tmp_path: Path) -> None:
    run(tmp_path, [job(tmp_path, 0), job(tmp_path, 1, status=1)])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "0").iterdir()}
    ended = run(tmp_path, [job(tmp_path, 0), job(tmp_path, 1)])
    assert [(one.status, one.skipped) for one in ended] == [(0, True), (0, False)]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "0").iterdir()} == before
    assert starts(tmp_path, 1) == ["", "resume=true"]


@pytest.mark.slow
def test_at_most_so_many_at_a_time(tmp_path: Path) -> None:
    begin = time.monotonic()
    run(tmp_path, [job(tmp_path, number, seconds=0.6) for number in range(4)], places=2)
    assert time.monotonic() - begin > 1.2


def test_devices_are_shared_out(tmp_path: Path) -> None:
    run(tmp_path, [job(tmp_path, n, 0.3, devices=d) for n, d in enumerate((1, 1, 2, 0))], places=4, devices=("4", "7"))
    assert {starts(tmp_path, 0)[0], starts(tmp_path, 1)[0]} == {"4", "7"}
    assert starts(tmp_path, 2) in (["4,7"], ["7,4"])
    assert starts(tmp_path, 3) == [os.environ.get("CUDA_VISIBLE_DEVICES", "")]


def test_a_pool_gives_different_devices_to_one_job_and_the_least_used_first() -> None:
    pool = Pool(["0", "0", "1"])
    assert pool.take(2) == ("0", "1")
    assert pool.take(2) is None
    assert pool.take(1) == ("0",)
    pool.give_back(("0", "1"))
    assert pool.take(2) == ("0", "1")


def test_devices_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("", []), ("2,5", ["2", "5"]), ("-1", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert found_devices() == expected


def test_a_number_is_never_given_to_another(tmp_path: Path) -> None:
    index = Index(tmp_path)
    assert [index.number(name) for name in ("a", "b", "a")] == [0, 1, 2], "asked for twice, run twice"
    index.write()
    again = Index(tmp_path)
    assert [again.number(name) for name in ("c", "b", "a", "a", "a")] == [3, 1, 0, 2, 4]


LAUNCHER = """
import signal, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from test_schedule import job, run
folder = Path(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a test run in the background would ignore
try:
    run(folder, [job(folder, n, seconds) for n, seconds in enumerate((0, 1.5, {long}))])
except KeyboardInterrupt:
    sys.exit(130)
"""


def launcher(folder: Path, long: float) -> subprocess.Popen:
    """A sweep of three jobs in a process of its own, the last of which takes `long` seconds; returned when two are at work."""
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
def test_a_sweep_killed_and_started_again_waits_for_what_still_runs(tmp_path: Path) -> None:
    """kill -9 of the sweep leaves its jobs alive: the next sweep neither starts them twice nor loses them."""
    process = launcher(tmp_path, 3)
    process.kill()
    process.communicate()
    ended = run(tmp_path, [job(tmp_path, 0), job(tmp_path, 1, 1.5), job(tmp_path, 2, 3)])
    assert [one.status for one in ended] == [0, 0, 0]
    assert [len(starts(tmp_path, number)) for number in range(3)] == [1, 1, 1]


@pytest.mark.slow
def test_a_job_left_running_and_then_killed_is_started_again(tmp_path: Path) -> None:
    left = start(job(tmp_path, 0, 600), ())
    while not (tmp_path / "0" / "starts").exists():
        time.sleep(0.01)
    killer = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(1); os.killpg({left._process.pid}, 9)"])
    schedule = Schedule(tmp_path, [job(tmp_path, 0)], Index(tmp_path), 1, ())
    ended = schedule.run()
    killer.wait()
    left._process.wait()
    assert ended[0].status == 0
    assert starts(tmp_path, 0) == ["", "resume=true"]


def test_the_screen_is_quiet_where_there_is_no_terminal(tmp_path: Path, capsys) -> None:
    run(tmp_path, [job(tmp_path, 0)])
    assert capsys.readouterr() == ("", "")


def test_the_screen_says_how_far_it_is(tmp_path: Path) -> None:
    one = start(job(tmp_path, 1, 600), ())
    while not one.last_lines(1):
        time.sleep(0.01)
    lines = SweepScreen(tmp_path, 4, 2).lines([one], [Ended(job(tmp_path, 0), 0, 100.0), Ended(job(tmp_path, 3), 1, 1.0)])
    one.signal(signal.SIGKILL)
    one._process.wait()
    assert lines[0].startswith("2 of 4 jobs · 1 running · 1 failed · ")
    assert lines[0].endswith(" · about 100 s left") or "about 2 min left" in lines[0]
    assert lines[1] == "    1  at work"


def test_the_time_left_by_hand() -> None:
    """Jobs took 100 s on average; one has run 40 s, three wait, two places: (60 + 300) / 2 = 180 s."""
    done = [Ended(job(Path(), n), 0, seconds) for n, seconds in enumerate((90.0, 110.0))]
    assert time_left(done, [40.0], 3, 2) == 180
    assert time_left(done, [40.0], 0, 2) == 60
    assert time_left([], [40.0], 3, 2) is None
    assert [duration(s) for s in (40, 119, 5 * 3600 + 61)] == ["40 s", "2 min", "5 h 01 min"]
