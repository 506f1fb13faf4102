"""The one doorbell of a process, rung by all its peers whatever the transport."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from tarragon_hpc import native
from tarragon_hpc.transport import memory

if TYPE_CHECKING:
    from collections.abc import Iterator


class ProcessDoorbell:
    """See `base.Doorbell`. Peers on this node get `fd` to ring it.

    Its memory also holds this process's signs of life, one for each such peer to watch.

    native: the same for native code
    spin_us: how long `wait` spins before it sleeps, in microseconds.
    """

    def __init__(self, spin_us: int = 20) -> None:
        memory.require_native()
        self.fd, view = memory.create_memory("tarragon-bell", native.module.BELL_BYTES)
        self.native = native.module.Doorbell(view, spin_us)
        self._sign = native.module.LifeSign(view)
        self._lives = list(range(native.module.LIFE_WORDS))

    def value(self) -> int:
        return self.native.value()

    def ring(self) -> None:
        self.native.ring()

    def wait(self, seen: int, timeout_s: float) -> int:
        return self.native.wait(seen, timeout_s)

    @contextlib.contextmanager
    def life(self) -> Iterator[int]:
        """A sign of life for one peer, who keeps it unless the block raises.

        Should they run out, some peers share one, and all but one of those will learn of this
        process's death by its socket only, which takes longer.
        """
        life = self._lives.pop() if self._lives else 0
        try:
            yield life
        except BaseException:
            self.give_life(life)
            raise

    def give_life(self, life: int) -> None:
        """The peer does not watch it any more."""
        if life not in self._lives:
            self._lives.append(life)

    def close(self) -> None:
        """No peer can join by it any more; the memory lives as long as it is mapped."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
