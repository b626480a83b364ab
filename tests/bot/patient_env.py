"""simcord's virtual Discord on machines that stand still for seconds now and then."""

from __future__ import annotations

from typing import Any

import simcord


class PatientEnv(simcord.Env):
    """Grants the bot its five seconds to settle twice: a stall is over by then, and what hangs still fails.

    A higher limit would do something else: a timer that is due within it is waited for in real time.
    """

    async def _settle_internal(self, **how: Any) -> None:
        try:
            await super()._settle_internal(**how)
        except TimeoutError:
            if how.get("_deadline") is not None:
                raise  # The limit of the operation around this one.
            await super()._settle_internal(**how)

    async def _advance_to(self, target: float, deadline: float) -> None:
        try:
            await super()._advance_to(target, deadline)
        except TimeoutError:
            assert self._loop is not None
            await super()._advance_to(target, self._loop.time() + self.settle_timeout)
