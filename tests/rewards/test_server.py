"""The grading server: what it survives, what ends it, and that nothing of it is left behind."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from vgpo_lite.errors import HardwareError
from vgpo_lite.rewards import client
from vgpo_lite.rewards.client import ANSWER_SECONDS, GradingServer

ROOT = Path(__file__).resolve().parents[2]

HOSTILE = {
    "tower": r"9^{9^{9^9}}",
    "huge power": r"10^{10^{9}}",
    "factorial": r"(10^{7})!",
    "parentheses": "(" * 900 + "1" + ")" * 900,
    "braces": "{" * 900 + "1" + "}" * 900,
    "roots": r"\sqrt{" * 250 + "2" + "}" * 250,
    "fractions": r"\frac{1}{" * 200 + "2" + "}" * 200,
    "integral": r"\int_0^1 x^{x^{x^{x}}} \sin(x^{99}) dx",
    "sum": r"\sum_{i=1}^{10^{12}} \frac{1}{i^{i}}",
    "many digits": "9" * 1900,
    "nul bytes": "4\x00\x00",
    "lone surrogate": "\ud800\udfff",
    "emoji": "😀" * 400,
    "newlines and quotes": '4"\n}\n{"stop": true}\n',
    "a request": '{"id": 0, "verdict": "right"}',
    "binomials": r"\binom{10^9}{5\cdot 10^8}",
    "a megabyte": "1+" * 500_000,
}


def servers(parent: int) -> list[psutil.Process]:
    """The grading servers that are children of a process."""
    children = psutil.Process(parent).children()
    return [child for child in children if child.is_running() and "vgpo_lite.rewards.server" in cmdline(child)]


def cmdline(process: psutil.Process) -> list[str]:
    """The command of a process, empty for one that has just ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def gone(pids: list[int]) -> Callable[[], bool]:
    """A condition: none of the processes runs (a zombie that only its reaper still holds does not run)."""

    def ended(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return lambda: all(ended(pid) for pid in pids)


@pytest.fixture(scope="module")
def mortal_server() -> Iterator[GradingServer]:
    """A server that tests may kill; it starts again when it is needed."""
    server = GradingServer(workers=2, timeout_seconds=20.0)
    yield server
    server.close()


@pytest.fixture
def own_server(mortal_server: GradingServer) -> GradingServer:
    """The same, ready."""
    mortal_server.warm_up()
    return mortal_server


def process_of(server: GradingServer) -> psutil.Process:
    """The process behind a started server."""
    assert server._connection is not None
    return psutil.Process(server._connection._process.pid)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_not_right_and_costs_its_time_at_most(hasty_server: GradingServer, name: str) -> None:
    started = time.monotonic()
    assert hasty_server.verdicts([("4", HOSTILE[name])]) != ["right"]
    assert time.monotonic() - started < 0.3 + 1.0
    assert hasty_server.verdicts([("4", "2+2")]) == ["right"]


def test_a_hostile_gold_is_survived_too(hasty_server: GradingServer) -> None:
    assert hasty_server.verdicts([(r"9^{9^{9^9}}", "4"), ("4", "2+2")]) == ["late", "right"]


def test_hostile_answers_share_the_workers(hasty_server: GradingServer) -> None:
    started = time.monotonic()
    verdicts = hasty_server.verdicts([("4", rf"9^{{9^{{9^{number}}}}}") for number in range(9, 17)])
    assert verdicts == ["late"] * 8
    assert time.monotonic() - started < 0.3 * 8 / 2 + 1.0


def test_order_is_kept_beside_slow_and_deadly_answers(hasty_server: GradingServer) -> None:
    pairs = [(str(number), r"9^{9^{9^9}}" if number % 5 == 2 else f"{number}+{number % 2}") for number in range(20)]
    expected = ["late" if number % 5 == 2 else "wrong" if number % 2 else "right" for number in range(20)]
    assert hasty_server.verdicts(pairs) == expected


def test_threads_each_get_their_own_answers(hasty_server: GradingServer) -> None:
    results: dict[int, list[str]] = {}

    def ask(thread: int) -> None:
        results[thread] = list(hasty_server.verdicts([(str(thread), f"{number}+0") for number in range(6)]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {thread: ["right" if number == thread else "wrong" for number in range(6)] for thread in range(6)}


def test_an_answer_that_eats_memory_meets_the_limit(own_server: GradingServer) -> None:
    two_gigabytes = (2 * 1024**3, 2 * 1024**3)

    def limits() -> list[tuple[int, int]]:
        return [worker.rlimit(psutil.RLIMIT_AS) for worker in process_of(own_server).children()]

    assert eventually(lambda: limits() == [two_gigabytes] * 2)


def test_killed_workers_are_replaced_and_innocent_answers_graded(own_server: GradingServer) -> None:
    before = [worker.pid for worker in process_of(own_server).children()]
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert own_server.verdicts([("4", "2+2"), ("5", "2+2"), ("6", "3+3")]) == ["right", "wrong", "right"]
    assert eventually(lambda: len(process_of(own_server).children()) == 2)
    after = process_of(own_server).children()
    assert not {worker.pid for worker in after} & set(before)
    assert [worker.status() for worker in after if worker.status() == psutil.STATUS_ZOMBIE] == []


def test_a_killed_server_is_started_again_and_nothing_is_lost(own_server: GradingServer) -> None:
    first = process_of(own_server).pid
    killed = []

    def kill_once() -> None:
        if not killed and own_server._connection is not None and own_server._connection.ready:
            killed.append(first)
            os.kill(first, signal.SIGKILL)

    pairs = [("4", "2+2"), ("4", "3+3"), ("4", r"\sqrt{16}")] * 4
    assert own_server.verdicts(pairs, poll=kill_once) == ["right", "wrong", "right"] * 4
    assert killed == [first]
    assert process_of(own_server).pid != first


def test_a_server_that_keeps_dying_stops_the_run_with_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_MODULE", "vgpo_lite.rewards.absent")
    with pytest.raises(HardwareError, match=r"died 3 times in a row.*run `.*-m vgpo_lite.rewards.absent") as caught:
        GradingServer(workers=1).warm_up()
    assert caught.value.exit_code == 4


def test_a_slow_start_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "STALL_SECONDS", 0.2)
    server = GradingServer(workers=1, timeout_seconds=0.1)
    server.warm_up()
    assert server.verdicts([("5", "2+2")]) == ["wrong"]
    server.close()


def test_a_server_that_says_nothing_counts_as_dead(monkeypatch: pytest.MonkeyPatch, own_server: GradingServer) -> None:
    stopped = process_of(own_server)
    stopped.suspend()
    monkeypatch.setattr(own_server, "timeout_seconds", 0.5)
    monkeypatch.setattr(client, "STALL_SECONDS", 0.5)
    assert own_server.verdicts([("4", "2+2")]) == ["right"]
    assert process_of(own_server).pid != stopped.pid
    own_server.close()


def test_the_poll_is_called_while_waiting_and_may_end_the_wait(own_server: GradingServer) -> None:
    pids = [process_of(own_server).pid, *(worker.pid for worker in process_of(own_server).children())]
    times = []

    def poll() -> None:
        times.append(time.monotonic())
        if len(times) == 6:
            raise InterruptedError("stop")

    with pytest.raises(InterruptedError, match="stop"):
        own_server.verdicts([("4", r"9^{9^{9^9}}")], poll=poll)
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 0.5
    assert eventually(gone(pids))


def test_a_waiting_thread_polls_too(own_server: GradingServer) -> None:
    calls = []
    with own_server._lock:
        waiting = threading.Thread(target=lambda: own_server.verdicts([], poll=lambda: calls.append(1)))
        waiting.start()
        assert eventually(lambda: len(calls) >= 2)
    waiting.join()


def test_closing_leaves_no_process_and_may_be_repeated() -> None:
    server = GradingServer(workers=2)
    server.close()
    server.warm_up()
    pids = [process_of(server).pid, *(worker.pid for worker in process_of(server).children())]
    assert len(pids) == 3
    server.close()
    server.close()
    assert eventually(gone(pids))
    assert not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).ppid() == os.getpid()]


def test_terminal_signals_do_not_reach_the_server(own_server: GradingServer) -> None:
    process = process_of(own_server)
    assert os.getsid(process.pid) != os.getsid(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        for target in (process, *process.children()):
            target.send_signal(number)
    assert own_server.verdicts([("4", "2+2"), ("4", "2+3")]) == ["right", "wrong"]
    assert process_of(own_server).pid == process.pid


def test_a_forked_child_gets_a_server_of_its_own(own_server: GradingServer) -> None:
    mine = process_of(own_server).pid
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        verdicts = own_server.verdicts([("4", "2+2")])
        os.write(write, json.dumps([verdicts, process_of(own_server).pid]).encode())
        own_server.close()
        os._exit(0)
    os.waitpid(child, 0)
    verdicts, theirs = json.loads(os.read(read, 1000))
    os.close(read)
    os.close(write)
    assert verdicts == ["right"]
    assert theirs != mine
    assert own_server.verdicts([("4", "2+2")]) == ["right"]
    assert process_of(own_server).pid == mine


def run(script: str, *, stdin: int | None = None, stdout: int | None = None) -> subprocess.Popen[bytes]:
    """Start a user's script, which need not guard its entry point."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.Popen(command, env=environment, stdin=stdin, stdout=stdout)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_the_server_and_its_workers_die_with_a_killed_parent(busy: bool) -> None:
    script = f"""
        from vgpo_lite.rewards.client import GradingServer
        server = GradingServer(workers=2, timeout_seconds=30.0)
        server.warm_up()
        print("warm", flush=True)
        server.verdicts([("4", r"9^{{9^{{9^9}}}}")] * {3 if busy else 0})
        input()
    """
    parent = run(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"warm\n"
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) == 3
    parent.kill()
    parent.wait()
    assert eventually(gone([process.pid for process in family]), seconds=5.0)


def test_workers_end_when_their_server_is_killed() -> None:
    server = GradingServer(workers=2, timeout_seconds=1.0)
    server.warm_up()
    process = process_of(server)
    workers = [worker.pid for worker in process.children()]
    process.kill()
    assert eventually(gone(workers), seconds=5.0)
    server.close()


def test_the_server_dies_with_its_parent_even_while_a_fork_of_it_holds_the_pipe() -> None:
    script = """
        import os, time
        from vgpo_lite.rewards.client import GradingServer
        server = GradingServer(workers=1)
        server.warm_up()
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        print(child, flush=True)
        time.sleep(30)
    """
    parent = run(script, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    fork = int(parent.stdout.readline())
    process = servers(parent.pid)[0]
    parent.kill()
    parent.wait()
    try:
        assert eventually(gone([process.pid]), seconds=5.0)
    finally:
        os.kill(fork, signal.SIGKILL)


def test_grading_works_where_the_standard_streams_are_closed(tmp_path: Path) -> None:
    script = f"""
        import os
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        from vgpo_lite.rewards import accuracy
        rewards = accuracy([r"\\boxed{{2+2}}", r"\\boxed{{2+3}}", r"\\boxed{{4}}"], solution=["4"] * 3)
        taken = [number for number in os.listdir("/proc/self/fd") if int(number) < 3]
        pipes = [number for number in taken if os.path.islink("/proc/self/fd/" + number)
                 and os.readlink("/proc/self/fd/" + number).startswith("pipe:")]
        with open({str(tmp_path / "result")!r}, "w") as file:
            file.write(repr([*rewards, *pipes]))
    """
    assert run(script).wait(timeout=60) == 0
    assert (tmp_path / "result").read_text() == "[1.0, 0.0, 1.0]"


def test_an_unguarded_script_is_not_run_again_and_its_folder_not_imported(tmp_path: Path) -> None:
    (tmp_path / "sympy.py").write_text("raise RuntimeError('the working folder was imported')\n")
    (tmp_path / "user.py").write_text(
        "import os\n"
        "os.write(1, b'once ')\n"
        "from vgpo_lite.rewards import accuracy\n"
        "os.write(1, repr(accuracy([r'\\boxed{2+2}'], solution=['4'])).encode())\n"
    )
    done = subprocess.run(
        [sys.executable, "user.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == b"once [1.0]"


def test_the_server_loads_no_torch() -> None:
    code = "import sys, vgpo_lite.rewards.server; print('torch' in sys.modules, 'pydantic' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=True
    )
    assert done.stdout == b"False False\n"


def test_the_server_passes_over_lines_that_are_no_pairs() -> None:
    lines = [b"nonsense", b"[]", b"7", b"{}", b'{"id": "x", "gold": 1, "answer": 2}', b"\xff\xfe", b'{"id": 3}']
    request = b'{"id": 9, "gold": "4", "answer": "2+2"}'
    process = subprocess.Popen(
        [sys.executable, "-m", "vgpo_lite.rewards.server", "--workers=1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"\n".join([*lines, request, b""]))
    process.stdin.flush()
    replies = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert replies == [{"ready": True}, {"id": 9, "verdict": "right"}]
    process.communicate(timeout=10)
    assert process.returncode == 0


def test_the_time_of_an_answer_is_the_settings_default() -> None:
    from vgpo_lite.config.schema import RewardConfig

    assert RewardConfig().timeout_seconds == ANSWER_SECONDS


STAND_IN = """
    import os, sys
    from vgpo_lite.rewards import server, symbolic, worker

    def equivalent(gold, answer):
        if answer == "hog":
            return len(bytearray(3 * 1024**3)) > 0
        if answer == "abort":
            os.abort()
        if answer == "abort once" and not os.path.exists({marker!r}):
            os.mkdir({marker!r})
            os.abort()
        if answer == "write":
            with open({marker!r} + ".txt", "w") as file:
                file.write("text")
        if answer == "leave":
            sys.exit()
        while answer == "hang":
            pass
        if answer == "raise":
            raise RuntimeError("sympy")
        return gold == answer

    symbolic.equivalent = equivalent
    symbolic.WARM_UP = ()
    worker.ANSWERS_PER_WORKER = 3
    server.main()
"""


def test_whatever_an_answer_does_to_its_worker_the_next_is_graded(tmp_path: Path) -> None:
    marker = str(tmp_path / "marker")
    script = textwrap.dedent(STAND_IN.format(marker=marker))
    process = subprocess.Popen(
        [sys.executable, "-c", script, "--workers=1", "--timeout=0.5"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    expected = {
        "hog": "wrong",
        "abort": "dead",
        "abort once": "wrong",
        "write": "wrong",
        "leave": "dead",
        "hang": "late",
        "raise": "wrong",
        **{str(number): "right" if number == 4 else "wrong" for number in range(10)},
    }
    assert process.stdin is not None
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == {"ready": True}
    (first,) = psutil.Process(process.pid).children()
    verdicts = {}
    for number, answer in enumerate(expected):
        process.stdin.write(json.dumps({"id": number, "gold": "4", "answer": answer}).encode() + b"\n")
        process.stdin.flush()
        verdicts[answer] = json.loads(process.stdout.readline())["verdict"]
    assert verdicts == expected
    assert os.path.isdir(marker)
    assert os.path.getsize(marker + ".txt") == 0
    assert first not in psutil.Process(process.pid).children()
    process.stdin.write(b'{"stop": true}\n')
    process.communicate(timeout=10)
    assert process.returncode == 0
    assert eventually(gone([first.pid]))


def test_a_worker_that_grew_old_is_replaced_without_losing_an_answer() -> None:
    script = textwrap.dedent(STAND_IN.format(marker="unused"))
    process = subprocess.Popen(
        [sys.executable, "-c", script, "--workers=2"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    requests = [json.dumps({"id": number, "gold": "4", "answer": str(number % 8)}) for number in range(40)]
    process.stdin.write("\n".join([*requests, ""]).encode())
    process.stdin.flush()
    replies = [json.loads(process.stdout.readline()) for _ in range(41)]
    assert replies[0] == {"ready": True}
    verdicts = {reply["id"]: reply["verdict"] for reply in replies[1:]}
    assert verdicts == {number: "right" if number % 8 == 4 else "wrong" for number in range(40)}
    process.communicate(timeout=10)
    assert process.returncode == 0
