"""Long work: where it can be taken up again, and what goes on beside it.

a loop -> Checkpoint.after(each step) -> told, saved when it is time, Preempted when it must end
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


class Preempted(Exception):
    """The process was asked to end. What it has done is in its checkpoint."""


@dataclass
class Checkpoint:
    """What a long loop tells whoever runs it; `load` gives None where there is no checkpoint."""

    load: Callable[[], bytes | None]
    save: Callable[[bytes], None]
    every_s: float  # seconds of work that a kill may cost
    told: Callable[[int, int], None] = lambda step, steps: None  # how far it is
    leave: Callable[[], bool] = lambda: False  # whether the process has been asked to end
    earlier_s: float = 0.0  # seconds of earlier attempts, once `load` gave their state
    _saved_at: float = field(default_factory=time.monotonic)

    def after(self, step: int, steps: int, state: Callable[[], bytes]) -> None:
        """To be called after each step but the last; saves where it is time, or the end.

        Preempted, once the state is safe.
        """
        self.told(step, steps)
        leave = self.leave()
        if leave or time.monotonic() - self._saved_at >= self.every_s:
            self.save(state())
            self._saved_at = time.monotonic()
        if leave:
            raise Preempted(f"after step {step} of {steps}")


@contextlib.contextmanager
def beside(loop: Callable[[threading.Event], object]) -> Iterator[None]:
    """Inside, `loop` runs in a thread of its own; at the end its event is set and it is awaited."""
    stop = threading.Event()
    thread = threading.Thread(target=loop, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=60)


def meanwhile(every_s: float, do: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
    """Inside, `do` is called every so many seconds in a thread; it must not raise."""

    def again(stop: threading.Event) -> None:
        while not stop.wait(every_s):
            do()

    return beside(again)
