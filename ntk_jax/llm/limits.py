"""How fast calls may go out: so many requests and tokens in any minute, and a pause for all when the server asks."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable

MINUTE = 60.0
SLICE = 0.25  # seconds between two looks at whether all has been stopped
LONGEST_PAUSE = 60.0  # whatever a server asks for
SHORTEST_PAUSE = 0.5  # likewise
FIRST_PAUSE = 1.0  # where it does not say; doubled for each that follows


class Pace:
    """Shared by all workers. Exact: in no minute do more requests or tokens go out than allowed; a request of more
    tokens than a minute has goes out alone.

    clock, sleep, jitter: of the time, seconds; a share in [0, 1). Tests give their own.
    """

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._requests, self._tokens = requests_per_minute, tokens_per_minute
        self._clock, self._sleep, self._jitter = clock, sleep, jitter
        self._lock = threading.Lock()
        self._sent: deque[tuple[float, int]] = deque()  # (when, tokens) of the last minute
        self._sum = 0
        self._until = -1.0  # the pause's end
        self._began = -1.0  # when the last pause did
        self._pauses = 0  # one after another, without a success between

    def now(self) -> float:
        """Seconds, of the clock."""
        return self._clock()

    def wait(self, tokens: int, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Returns when a request of so many tokens may go out, which counts as sent then. False: `stopped` became
        true."""
        while not stopped():
            with self._lock:
                now = self._clock()
                delay = max(self._until - now, self._full_for(now, tokens))
                if delay <= 0:
                    if self._requests is not None or self._tokens is not None:
                        self._sent.append((now, tokens))
                        self._sum += tokens
                    return True
            self._sleep(min(delay, SLICE))
        return False

    def rest(self, seconds: float, stopped: Callable[[], bool] = lambda: False) -> None:
        """Sleeps, this worker alone, unless `stopped` becomes true."""
        end = self._clock() + seconds
        while not stopped() and (left := end - self._clock()) > 0:
            self._sleep(min(left, SLICE))

    def back_off(self, failures: int) -> float:
        """Seconds before the next attempt after so many failures: doubled each time, with jitter."""
        return self._spread(min(FIRST_PAUSE * 2.0 ** max(failures - 1, 0), LONGEST_PAUSE))

    def pause(self, sent: float, seconds: float | None) -> None:
        """All workers wait. sent: when the request went out that was turned away; a pause that began since and still
        holds answers it already. seconds: as the server asked, within bounds; None: twice as long as the last pause."""
        with self._lock:
            now = self._clock()
            if seconds is not None:
                length = min(max(seconds, SHORTEST_PAUSE), LONGEST_PAUSE) + self._jitter()
            elif now >= self._until or sent > self._began:
                self._pauses += 1
                length = self._spread(min(FIRST_PAUSE * 2.0 ** (self._pauses - 1), LONGEST_PAUSE))
            else:
                return
            self._until = max(self._until, now + length)
            self._began = now

    def went_well(self) -> None:
        """A reply came: the next pause is a short one."""
        with self._lock:
            self._pauses = 0

    def _spread(self, seconds: float) -> float:
        return seconds * (0.5 + 0.5 * self._jitter())

    def _full_for(self, now: float, tokens: int) -> float:
        """Seconds until the limits have room."""
        while self._sent and self._sent[0][0] <= now - MINUTE:
            self._sum -= self._sent.popleft()[1]
        wait = 0.0
        if self._requests is not None and len(self._sent) >= self._requests:
            wait = self._sent[-self._requests][0] + MINUTE - now
        if self._tokens is not None and self._sent and self._sum + tokens > self._tokens:
            left = self._sum
            for when, size in self._sent:
                left -= size
                wait = max(wait, when + MINUTE - now)
                if left + tokens <= self._tokens or left == 0:
                    break
        return wait
