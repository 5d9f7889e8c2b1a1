"""Writes the ledger beside the steps: one thread, one step after the other. The texts are there before a step is learned from."""

from concurrent.futures import Future, ThreadPoolExecutor

from cluster.storage.ledger import LedgerEntry, SampledGroups, TrajectoryLedger


class LedgerWriter:
    """A ledger whose newest step may still be on its way. For one thread of the driver.

    What is asked of it sees every step that was begun. A checkpoint may hold a step only after `finish`: what a run goes on from
    is then never ahead of its ledger.
    """

    def __init__(self, ledger: TrajectoryLedger) -> None:
        self._ledger = ledger
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._writing: Future[None] | None = None

    def begin(self, step: int, groups: SampledGroups) -> None:
        """Start to write a step, after the one before; raises what kept that one from being written."""
        self.finish()
        self._writing = self._thread.submit(self._ledger.record, step, groups)

    def finish(self) -> None:
        """Return when every step is on disk. Raises `DataError` or `OSError` where one could not be written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def entries_of(self, step: int) -> list[LedgerEntry]:
        """What a step's file holds; nothing where there is none."""
        self.finish()
        return self._ledger.entries_of(step)

    def discard_from(self, step: int) -> None:
        """Remove this step and all later ones."""
        self.finish()
        self._ledger.discard_from(step)
