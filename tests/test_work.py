"""A long loop is taken up again and told when to end; what goes on beside it ends with it."""

import threading
import time
from types import SimpleNamespace

import pytest

from medssl import _work
from medssl._work import Checkpoint, Preempted, beside, meanwhile


@pytest.fixture
def clock(monkeypatch):
    """Seconds, clock[0], that pass when the test says so."""
    now = [time.monotonic()]
    monkeypatch.setattr(_work, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_checkpoint_is_saved_when_it_is_time_and_every_step_is_told(clock):
    saved, told = [], []
    checkpoint = Checkpoint(lambda: None, saved.append, 60, lambda *of: told.append(of))
    for step, passed_s in enumerate((59, 2, 59.5, 0.25, 0.25, 200, 1), 1):
        clock[0] += passed_s
        checkpoint.after(step, 9, lambda step=step: b"%d" % step)
    assert saved == [b"2", b"5", b"6"]
    assert told == [(step, 9) for step in range(1, 8)]


def test_the_time_of_a_save_is_no_work_that_a_kill_may_cost(clock):
    saved = []

    def save(state):
        saved.append(state)
        clock[0] += 50

    checkpoint = Checkpoint(lambda: None, save, 55)
    for step in range(1, 13):
        clock[0] += 10
        checkpoint.after(step, 99, lambda step=step: step)
    assert saved == [6, 12]


def test_a_state_is_made_only_where_it_is_saved(clock):
    checkpoint = Checkpoint(lambda: None, lambda state: None, 60)
    checkpoint.after(1, 9, lambda: pytest.fail("nobody asked for it"))


def test_who_is_asked_to_end_leaves_once_the_state_is_safe(clock):
    done, asked = [], [False, False, True]
    checkpoint = Checkpoint(
        lambda: None,
        lambda state: done.append(f"saved {state}"),
        60,
        lambda step, steps: done.append(f"told {step}"),
        lambda: asked.pop(0),
    )
    checkpoint.after(1, 9, lambda: 1)
    checkpoint.after(2, 9, lambda: 2)
    with pytest.raises(Preempted, match="after step 3 of 9"):
        checkpoint.after(3, 9, lambda: 3)
    assert done == ["told 1", "told 2", "told 3", "saved 3"]


def test_who_cannot_save_does_not_leave_as_if_it_had(clock):
    def full(state):
        raise OSError("disk full")

    checkpoint = Checkpoint(lambda: None, full, 60, leave=lambda: True)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.after(1, 9, lambda: 1)


def test_what_is_done_meanwhile_is_done_again_and_again_and_not_afterwards():
    done, often = [], threading.Event()

    def do():
        done.append(threading.current_thread())
        if len(done) == 3:
            often.set()

    with meanwhile(0.01, do):
        assert often.wait(30)
    after = len(done)
    time.sleep(0.1)
    assert len(done) == after
    assert threading.current_thread() not in done


def test_what_goes_on_beside_is_told_to_end_and_awaited_whatever_happens():
    ended = []

    def loop(stop):
        stop.wait()
        time.sleep(0.1)
        ended.append(True)

    with pytest.raises(KeyError), beside(loop):
        raise KeyError
    assert ended
