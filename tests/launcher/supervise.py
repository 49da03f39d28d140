"""A launcher in miniature, for tests that kill it: `supervise.py RUN_DIR GRACE_S NAME=SCRIPT…`."""

import os
import sys
from functools import partial
from pathlib import Path

from launcher.log_pump import LogPump
from launcher.logs import LogWriter
from launcher.process import ChildSpec
from launcher.supervisor import Service, Supervisor


def main() -> int:
    run_dir, grace_s = Path(sys.argv[1]), float(sys.argv[2])
    log = LogWriter(level="debug", json_output=False)
    pump = LogPump()
    services = []
    for word in sys.argv[3:]:
        name, _, script = word.partition("=")
        spec = ChildSpec(name, [sys.executable, "-u", script], {**os.environ, "RUN_DIR": str(run_dir)}, grace_s)
        services.append(Service(spec, lambda name=name: (partial(log.relay, name), None)))
    ready_file = run_dir / "ready"
    supervisor = Supervisor(
        services,
        run_dir=run_dir,
        pump=pump,
        log=log,
        is_ready=ready_file.exists,
        on_ready=partial(log.info, "ready"),
    )
    try:
        return supervisor.run()
    finally:
        pump.close()


if __name__ == "__main__":
    sys.exit(main())
