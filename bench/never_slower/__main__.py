"""`python -m bench.never_slower`: speculation on over off at every concurrency; `--fixed`: against fixed drafts."""

import asyncio
import sys

import grpc

from bench.errors import BenchError
from bench.never_slower.config import parse_args
from bench.never_slower.report import fixed_report, report
from bench.never_slower.run import measure
from bench.plots import PlotData, draw


def main() -> None:
    config = parse_args(sys.argv[1:])
    try:
        points = asyncio.run(measure(config))
        if config.fixed:
            print(fixed_report(points))
        else:
            print(report(points, config), flush=True)
            if config.plots is not None:
                draw(PlotData(never_slower=points), config.plots)
    except BenchError as error:
        sys.exit(f"bench: {error}")
    except grpc.aio.AioRpcError as error:
        sys.exit(f"bench: the service failed a request: {error.details()} ({error.code().name})")


if __name__ == "__main__":
    main()
