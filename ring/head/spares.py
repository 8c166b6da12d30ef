"""Which spare takes the place of a lost stage. Pure but for the clock that it is handed."""

from __future__ import annotations

from dataclasses import dataclass, field

from ring.wire.messages import StageInfo

ALIVE_S = 3.0
"""A spare announces itself once a second; one that has been silent for so long does not count."""
PATIENCE_S = 4.0
"""When a ring does not form for so long, something else is tried."""


@dataclass(slots=True)
class Spares:
    """The spares that have announced themselves, and where stages are found that are not where `--next` says.

    A lost stage's spare takes over at once. If the ring does not form with it, every stage that has a spare is replaced,
    as more than one may be gone; if not even then, the spares are let go and the original places are tried again.
    """

    routes: dict[int, str] = field(default_factory=dict)
    _seen: dict[int, tuple[StageInfo, float]] = field(default_factory=dict)
    missing: int | None = None
    _since: float | None = None

    def announced(self, info: StageInfo, now: float) -> bool:
        """A spare says that it is there; returns whether it is new."""
        known = self.alive(info.stage, now)
        self._seen[info.stage] = (info, now)
        return known is None or known.incarnation != info.incarnation

    def alive(self, stage: int, now: float) -> StageInfo | None:
        """The spare of a stage, if there is one."""
        info, at = self._seen.get(stage, (None, 0.0))
        return info if now - at < ALIVE_S else None

    def lost(self, stage: int, now: float) -> None:
        """A stage is gone, whichever node it was."""
        self.routes.pop(stage, None)
        self.missing, self._since = stage, now

    def choose(self, now: float) -> dict[int, str]:
        """Where to look for stages in the next attempt to form the ring."""
        self._since = now if self._since is None else self._since
        if now - self._since > 2 * PATIENCE_S:
            self.routes.clear()
            self.missing, self._since = None, now
        elif now - self._since > PATIENCE_S:
            for stage in self._seen:
                self._use(stage, now)
        elif self.missing is not None:
            self._use(self.missing, now)
        return dict(self.routes)

    def formed(self) -> None:
        """The ring has formed."""
        self.missing = self._since = None

    def _use(self, stage: int, now: float) -> None:
        if stage not in self.routes and (info := self.alive(stage, now)):
            self.routes[stage] = info.listen
