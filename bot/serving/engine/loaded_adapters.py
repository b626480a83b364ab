"""The adapters in memory: names are immutable, and each stays until its last running request has ended."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from bot.serving.engine.lora import Adapter
from bot.serving.errors import AdapterRefusedError, UnknownModelError

MAX_ADAPTERS = 16


@dataclass(slots=True)
class _Entry:
    adapter: Adapter
    pins: int = 0
    last_used: int = 0
    unused: threading.Event = field(default_factory=threading.Event)


class LoadedAdapters:
    """Loaded adapters with reference counts; safe to use from any thread."""

    def __init__(self, max_adapters: int = MAX_ADAPTERS) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._leaving: dict[int, _Entry] = {}
        self._clock = 0
        self._max = max_adapters

    def names(self) -> list[str]:
        """Return the names that new requests may use, in the order of loading."""
        with self._lock:
            return list(self._entries)

    def add(self, adapter: Adapter) -> None:
        """Make an adapter available; at the limit, first drop the least recently used idle one.

        Raises:
            AdapterRefusedError: the limit is reached and every adapter is in use.
        """
        with self._lock:
            if adapter.name in self._entries:
                return
            if len(self._entries) >= self._max:
                self._drop_oldest()
            self._clock += 1
            self._entries[adapter.name] = _Entry(adapter, last_used=self._clock)

    def pin(self, name: str) -> Adapter:
        """Return an adapter and keep it until :meth:`unpin`.

        Raises:
            UnknownModelError: no adapter of this name is loaded.
        """
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                raise UnknownModelError(f"The model {name!r} is not loaded.")
            entry.pins += 1
            self._clock += 1
            entry.last_used = self._clock
            return entry.adapter

    def unpin(self, adapter: Adapter) -> None:
        """Give back what :meth:`pin` returned."""
        with self._lock:
            entry = self._leaving.get(id(adapter)) or self._entries[adapter.name]
            entry.pins -= 1
            if entry.pins == 0 and self._leaving.pop(id(adapter), None) is not None:
                entry.unused.set()

    def remove(self, name: str) -> threading.Event:
        """Refuse the name to new requests; the returned event is set once no running request uses it.

        Raises:
            UnknownModelError: no adapter of this name is loaded.
        """
        with self._lock:
            entry = self._entries.pop(name, None)
            if entry is None:
                raise UnknownModelError(f"The model {name!r} is not loaded.")
            if entry.pins:
                self._leaving[id(entry.adapter)] = entry
            else:
                entry.unused.set()
            return entry.unused

    def _drop_oldest(self) -> None:
        idle = [entry for entry in self._entries.values() if entry.pins == 0]
        if not idle:
            raise AdapterRefusedError(
                "{count} adapters are loaded and all are in use; unload one first.", count=self._max
            )
        del self._entries[min(idle, key=lambda entry: entry.last_used).adapter.name]
