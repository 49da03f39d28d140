"""Entry of a node's agent: keeps the group of shards that this node has, starts all of them again when one dies.

`python -m shard.agent FLAGS`: its own flags, and those of the shards, which get whatever is not its own. The agent is
torch's, the one behind torchrun. Shards are forked from it instead of started, because it has imported what they need:
a service starts .6 to 2.2 s sooner (bench/RESULTS.md, section 9). So nothing here may touch CUDA, compute with tensors
or open a gRPC channel: none of these outlives a fork.
"""

import argparse
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.numa.binding import AffinityMode, NumaOptions

from shard.process import MEETING, die_with_parent, name_process

_Shard = multiprocessing.get_context("fork").Process
# How often the agent looks after its shards.
_INTERVAL_S = 0.1


def main() -> None:
    # Here and not above: who brings shards of another kind does not pay for it.
    from shard.__main__ import main as shard

    run(sys.argv[1:], shard)


def run(argv: list[str], shard: Callable[[list[str]], None]) -> None:
    """Keeps `--num-shard` processes of `shard`; raises when they died too often."""
    parser = argparse.ArgumentParser(prog="shard.agent", description=__doc__, add_help=False, allow_abbrev=False)
    parser.add_argument("--num-shard", type=int, required=True, help="processes on this node")
    parser.add_argument("--max-restarts", type=int, required=True, help="of the group, before the agent gives up")
    parser.add_argument(
        "--meeting-place", required=True, help="begins the paths of files by which ranks find each other"
    )
    parser.add_argument("--shard-output", required=True, help="named pipe that rank r prints to, without -r")
    own, flags = parser.parse_known_args(argv)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=own.num_shard,
        run_id="drafthouse",
        rdzv_backend="c10d",
        # A file: whoever reaches a port could have the agent unpickle what he likes (torch's dynamic rendezvous).
        rdzv_endpoint=f"{own.meeting_place}-{os.getpid()}",
        # Each sign of life is written to the end of it, and one node needs none.
        rdzv_configs={"store_type": "file", "keep_alive_interval": 24 * 3600},
        local_addr="127.0.0.1",
        max_restarts=own.max_restarts,
        monitor_interval=_INTERVAL_S,
        start_method="fork",
        # One that nobody sends: the agent makes exceptions of them, which are lost where a message is being logged.
        signals_to_handle="SIGUSR2",
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        # Without it the configuration asks CUDA what to take, and whoever is forked after that cannot use CUDA.
        numa_options=NumaOptions(AffinityMode.NODE),
    )
    # Binding would ask CUDA where the devices are.
    config.numa_options = None
    signal.signal(signal.SIGTERM, _end)
    # Where one shard died torch ends the others by this, and waits 30 s: one that is stopped would hear nothing of it.
    _Shard.terminate = _Shard.kill  # type: ignore[method-assign]
    elastic_launch(config, _begin)(shard, flags, own, os.getpid())


def _end(number: int, frame: FrameType | None) -> None:
    """At any moment: shards owe nobody anything."""
    for shard in multiprocessing.active_children():
        shard.kill()
    for shard in multiprocessing.active_children():
        shard.join()
    os._exit(0)


def _begin(shard: Callable[[list[str]], None], flags: list[str], own: argparse.Namespace, agent_pid: int) -> None:
    """The first code of a forked shard. What it fails of is said where it prints, not by the agent."""
    # They end it at once: it owes nobody anything, the router holds every token. And by themselves: of one that exits
    # with 0 but returns nothing the agent believes for ever that it runs.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    die_with_parent(agent_pid)
    # Another file for each group: in that of the last one ranks would read addresses of the dead.
    os.environ[MEETING] = f"{own.meeting_place}-{agent_pid}-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    pipe = os.open(f"{own.shard_output}-{os.environ['LOCAL_RANK']}", os.O_WRONLY)
    os.dup2(pipe, 1)
    os.dup2(pipe, 2)
    os.close(pipe)
    name_process(f"shard-{os.environ['RANK']}")
    try:
        shard(flags)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


if __name__ == "__main__":
    main()
