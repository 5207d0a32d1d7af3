"""What every service writes down: metrics, and the audit log without which it may not answer."""

from __future__ import annotations

from typing import Any

from covary.serving.http.audit import AuditLog
from covary.serving.http.metrics import Metrics
from covary.serving.http.refusals import Refused
from covary.serving.http.settings import ServeSettings


class Recording:
    """Half of a service.

    Args:
        settings: `audit`, and what happens where it cannot be written.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings, self.metrics, self.audit = settings, Metrics(), AuditLog(settings.audit)

    @property
    def verdicts_visible(self) -> bool:
        """Whether clients get to see verdicts."""
        return self.settings.verdicts == "shown"

    def write_down(self, event: str, **facts: Any) -> None:
        """Writes an event to the audit log.

        Raises:
            Refused: 503, it cannot be written, and the settings say that nothing goes on without.
        """
        written = self.audit(event, **facts)
        self.metrics.audit(self.audit.problem is not None, self.audit.lost)
        if not written and self.settings.audit_failure == "refuse":
            found = f"the audit log cannot be written ({self.audit.problem})"
            raise Refused(503, found, "an operator who mends it", "try again later")

    def ready(self) -> str | None:
        """What there is to say of the service's state; None if all is well.

        Raises:
            Refused: 503, it would refuse every request.
        """
        works = self.audit.works()
        self.metrics.audit(not works, self.audit.lost)
        if works:
            return None
        message = f"the audit log cannot be written ({self.audit.problem})"
        if self.settings.audit_failure == "refuse":
            raise Refused(503, message, "an operator who mends it", "try again later")
        return message
