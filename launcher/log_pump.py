"""Reads the output of all children on one thread and hands it on line by line. Knows nothing of what the lines mean."""

import os
import selectors
import threading
from collections.abc import Callable
from dataclasses import dataclass

_READ_BYTES = 65536
# A line longer than this is handed on in pieces, so that a child without newlines cannot fill the memory.
_MAX_LINE_BYTES = 1 << 20


@dataclass(slots=True)
class _Source:
    on_line: Callable[[str], None]
    on_end: Callable[[], None] | None
    rest: bytes = b""

    def feed(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > _MAX_LINE_BYTES:
            lines.append(self.rest)
            self.rest = b""
        for line in lines:
            self._emit(line)

    def finish(self) -> None:
        if self.rest:
            self._emit(self.rest)
            self.rest = b""
        if self.on_end is not None:
            self.on_end()

    def _emit(self, line: bytes) -> None:
        # Progress bars overwrite their line with \r: only the last state is worth a log line.
        text = line.decode("utf-8", errors="replace").rstrip("\r")
        self.on_line(text.rsplit("\r", 1)[-1])


class LogPump:
    """Owns every descriptor given to it and closes it at its end of file, or in `close`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._added: list[tuple[int, _Source]] = []
        self._wake_read, self._wake_write = os.pipe()
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="log-pump", daemon=True)
        self._thread.start()

    def add(self, descriptor: int, on_line: Callable[[str], None], on_end: Callable[[], None] | None = None) -> None:
        os.set_blocking(descriptor, False)
        with self._lock:
            self._added.append((descriptor, _Source(on_line, on_end)))
        os.write(self._wake_write, b"+")

    def close(self) -> None:
        """Hands on what is still in the pipes, then ends. Waits for no child."""
        self._closing = True
        os.write(self._wake_write, b"-")
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                if key.data is None:
                    os.read(self._wake_read, _READ_BYTES)
                    self._register_added()
                else:
                    self._read_once(key.fd, key.data)
        self._register_added()
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                while self._read_once(key.fd, key.data):
                    pass
                if key.fd in self._selector.get_map():
                    self._end(key.fd, key.data)

    def _register_added(self) -> None:
        with self._lock:
            added, self._added = self._added, []
        for descriptor, source in added:
            self._selector.register(descriptor, selectors.EVENT_READ, source)

    def _read_once(self, descriptor: int, source: _Source) -> bool:
        """False when there is nothing (more) to read now."""
        try:
            data = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._end(descriptor, source)
            return False
        source.feed(data)
        return True

    def _end(self, descriptor: int, source: _Source) -> None:
        self._selector.unregister(descriptor)
        os.close(descriptor)
        source.finish()
