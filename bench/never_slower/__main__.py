"""`python -m bench.never_slower`: speculation on over off at every concurrency; `--fixed`: against fixed drafts."""

import asyncio
import sys

from bench.errors import told_to_user
from bench.never_slower.config import parse_args
from bench.never_slower.report import fixed_report, report
from bench.never_slower.run import measure
from bench.plots import PlotData, draw


@told_to_user()
def main() -> None:
    config = parse_args(sys.argv[1:])
    points = asyncio.run(measure(config))
    if config.fixed:
        print(fixed_report(points))
    else:
        print(report(points, config), flush=True)
        if config.plots is not None:
            draw(PlotData(never_slower=points), config.plots)


if __name__ == "__main__":
    main()
