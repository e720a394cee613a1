"""Ctrl-C and SIGTERM let the step finish; a second one does not."""

import os
import signal
import subprocess
import sys

import pytest
from patience import LONGEST

from portraitkit.runs.terminal import Interruptible

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
NAMES = ["ctrl-c", "sigterm"]
LOOP = """
import sys, time
from portraitkit.runs.terminal import Interruptible
with Interruptible() as interrupt:
    print("ready", flush=True)
    while not interrupt.requested:
        time.sleep(0.01)
    print("asked", flush=True)
    {then}
    print("saved", flush=True)
sys.exit(interrupt.exit_code)
"""


def start(then):
    return subprocess.Popen([sys.executable, "-c", LOOP.format(then=then)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("number", "code"), SIGNALS, ids=NAMES)
def test_one_signal_lets_the_step_finish(number, code):
    with start("time.sleep(0.1)") as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=LONGEST)
    assert (out, err, process.returncode) == ("asked\nsaved\n", "", code)


@pytest.mark.parametrize(("number", "code"), SIGNALS, ids=NAMES)
def test_a_second_signal_ends_the_process_at_once(number, code):
    with start("time.sleep(600)") as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=LONGEST)
    assert (out, err, process.returncode) == ("", "", code)


@pytest.mark.parametrize(("number", "code"), SIGNALS, ids=NAMES)
def test_a_signal_is_noted_and_nothing_else_happens(number, code):
    with Interruptible() as interrupt:
        assert (interrupt.requested, interrupt.exit_code) == (None, 0)
        os.kill(os.getpid(), number)
        assert (interrupt.requested, interrupt.exit_code) == (number, code)
    assert interrupt.exit_code == code


@pytest.mark.parametrize("failing", [False, True])
def test_the_handlers_of_before_come_back(failing):
    seen = []

    def note(number, frame):
        seen.append(number)

    before = {number: signal.signal(number, note) for number, _ in SIGNALS}
    try:
        with pytest.raises(ZeroDivisionError) if failing else Interruptible(), Interruptible() as interrupt:
            assert 1 / (0 if failing else 1)
        for number, _ in SIGNALS:
            assert signal.getsignal(number) is note
            os.kill(os.getpid(), number)
        assert seen == [number for number, _ in SIGNALS]
        assert interrupt.requested is None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_after_the_run_ctrl_c_is_the_ordinary_one():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs pytest in the background has it ignored
    try:
        with Interruptible():
            pass
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_another_process_was_told_counts_and_the_own_signal_still_only_asks():
    with Interruptible() as interrupt:
        interrupt.learn(signal.SIGTERM)
        assert (interrupt.requested, interrupt.exit_code) == (signal.SIGTERM, 143)
        os.kill(os.getpid(), signal.SIGINT)  # would end this process, were it the second
        assert interrupt.exit_code == 130
