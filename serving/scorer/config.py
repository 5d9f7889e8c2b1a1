"""Settings of a reward model behind HTTP."""

from pydantic import Field

from actors.config import RewardModelScorerConfig
from serving.config import BodyLimits, ListenConfig


class ScorerLimits(BodyLimits):
    """What one request may ask for."""

    max_items: int = Field(256, ge=1)
    """Texts of one request; a run sends `batch_size` of its scorer of kind http."""


class ServeScorerConfig(ListenConfig):
    """`rayward serve-scorer`."""

    port: int = Field(8100, ge=0, le=65535)
    """0 picks a free one."""
    scorer: RewardModelScorerConfig
    """As in a run's `scorers`; weight, num_replicas and num_cpus have no meaning here."""
    limits: ScorerLimits = ScorerLimits()
    max_waiting_requests: int = Field(16, ge=1)
    """Requests taken at a time, the one that is being scored among them; the next one is refused with 429 at once."""
    request_timeout_s: float = Field(120.0, gt=0)
    """Wall time after which a request that is not answered is (408)."""
    drain_timeout_s: int = Field(30, ge=1)
    """Wall time that requests in progress have to end after Ctrl-C or SIGTERM."""
    log_dir: str | None = None
    """Folder for one line of JSON a request; None: there is no log of requests."""
