"""Where a benchmark ran, for its file of results."""

import os
import platform
from datetime import UTC, datetime

from medssl import plan


def environment() -> dict[str, object]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "code": plan.code_version(),
    }
