"""Signals at any moment: the state is saved, the exit code is 75, and the resumed run ends with the same bytes."""

import os
import random
import signal
import sys
import threading
import time
import traceback

import pytest
import torch

from dragontune import cli
from dragontune.commands import parsing
from dragontune.training import signals
from small_runs import make_workplace


def in_child(work, said=None):
    """Fork, do `work` in the child, which ends with what it returns; its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if said is not None:
                sys.stdout = sys.stderr = said.open("w", buffering=1)  # pytest's own would not be seen
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def ask(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_that_is_lost_is_asked_again(number, monkeypatch):
    monkeypatch.setattr(signals, "AGAIN", 0.1)

    class Loses:
        def __del__(self):
            ask(number)
            time.sleep(0.01)

    def work():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signals.heard()
        thing = Loses()
        del thing
        for _ in range(200):
            try:
                time.sleep(0.01)
            except KeyboardInterrupt:
                return 75 if signals.asked() else 3
        return 4

    assert ended(in_child(work)) == 75


def test_more_of_them_do_not_disturb_the_saving():
    def work():
        signals.heard()
        try:
            ask()
            time.sleep(1)
        except KeyboardInterrupt:
            ask()  # the same question, before anybody has seen to it
            with signals.ignored():
                ask()
                ask(signal.SIGINT)
                time.sleep(0.01)
            ask()
            time.sleep(0.01)
            return 75
        return 4

    assert ended(in_child(work)) == 75


def test_outside_the_command_line_handlers_come_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    signals._asked.clear()
    with signals.ignored():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_threads_that_hang_do_not_hold_it(monkeypatch):
    monkeypatch.setattr(signals, "LEAVE", 0.3)

    def work():
        threading.Thread(target=time.sleep, args=(30,)).start()
        signals.leave_by(75)
        sys.exit(75)  # waits for the thread in a real process; here only the timer can end it

    def hold():
        try:
            work()
        except SystemExit:
            time.sleep(30)
        return 1

    start = time.monotonic()
    assert ended(in_child(hold)) == 75
    assert time.monotonic() - start < 10


def test_an_interruption_that_became_another_error(monkeypatch, tmp_path):
    def broken(argv):
        try:
            ask()
            time.sleep(1)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    monkeypatch.setattr(cli, "_tune", broken)
    assert ended(in_child(lambda: cli.run(["tune"]), tmp_path / "said")) == 75
    assert "interrupted; run the same command again" in (tmp_path / "said").read_text()


def test_at_random_moments_of_a_real_run(tmp_path, monkeypatch):
    """Loading, rehearsing, collecting, training, clips, looks, report: 75 within ten seconds, then the rest."""
    monkeypatch.chdir(make_workplace(tmp_path))
    guard = "guard: {prompts: prompts.txt, count: 4, every: 2, patience: 9, scales: [1.0]}\n"
    (tmp_path / "recipe.yaml").write_text((tmp_path / "recipe.yaml").read_text() + guard)
    parsing.import_parts()
    torch.set_num_threads(1)
    said, tune = tmp_path / "said", ["tune", "recipe.yaml", "--loop.rounds", "4", "--loop.checkpoint_every", "2"]
    start = time.monotonic()
    assert ended(in_child(lambda: cli.run([*tune, "--out", "whole"]), said)) == 0, said.read_text()
    length, moments, stopped = time.monotonic() - start, random.Random(0), 0
    for _ in range(8):
        child = in_child(lambda: cli.run([*tune, "--out", "run", "--resume"]), said)
        time.sleep(moments.uniform(0.05, 0.6 * length))
        sent = time.monotonic()
        numbers = [moments.choice(signals.SIGNALS) for _ in range(moments.randrange(1, 4))]
        for number in numbers:
            os.kill(child, number)
            time.sleep(moments.choice([0, 0.005, 0.05]))
        code, words = ended(child), said.read_text()
        assert time.monotonic() - sent < 10
        assert code in (0, 75, -signal.SIGTERM, -signal.SIGINT), words  # minus a signal: it came before `run` began
        assert "Traceback" not in words
        stopped += code == 75
    assert stopped >= 3
    assert ended(in_child(lambda: cli.run([*tune, "--out", "run", "--resume"]), said)) == 0
    for path in [*(tmp_path / "whole" / "adapter").iterdir(), *(tmp_path / "whole" / "samples").rglob("*.flac")]:
        assert path.read_bytes() == (tmp_path / "run" / path.relative_to(tmp_path / "whole")).read_bytes()
