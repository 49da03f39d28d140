"""One launch from start to end: resolve the model, make the private folder, supervise the two children in it."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from launcher.agent_log import AgentLog
from launcher.commands import RunPaths, agent_spec, router_spec
from launcher.config import MAX_UDS_PREFIX_BYTES, LauncherConfig, with_model_length
from launcher.errors import LaunchError
from launcher.log_pump import LogPump
from launcher.logs import LogWriter
from launcher.machine import Machine
from launcher.process import helper
from launcher.readiness import is_healthy, is_taken, reachable_host
from launcher.resolve import ModelRequest, ResolvedModel, resolve
from launcher.run_folder import run_folder
from launcher.sockets import claimed
from launcher.supervisor import Service, Supervisor


@dataclass(frozen=True, slots=True)
class Programs:
    """The commands of the two programs, without their flags."""

    agent: tuple[str, ...] = (sys.executable, "-m", "shard.agent")
    router: tuple[str, ...] = (sys.executable, "-m", "router")
    # Makes what shards on CPU would otherwise make themselves, while they start; None: there is nothing to make.
    kernels: tuple[str, ...] | None = None

    @classmethod
    def for_machine(cls, machine: Machine) -> "Programs":
        return cls(kernels=None if machine.num_gpus else (sys.executable, "-m", "shard.cpu.build"))


def launch(
    config: LauncherConfig, machine: Machine, environ: Mapping[str, str], log: LogWriter, programs: Programs
) -> int:
    """Serves until a signal or a failure; returns the exit code. Raises LaunchError and ConfigError before that."""
    assert config.num_shard is not None
    request = ModelRequest(
        config.model_id,
        config.revision,
        config.dtype,
        config.huggingface_hub_cache,
        medusa=config.medusa,
        medusa_revision=config.medusa_revision,
        use_heads=config.drafts_with_heads,
    )
    prefix = config.shard_uds_path
    with helper(programs.kernels, environ), claimed(prefix, config.num_shard) if prefix else nullcontext():
        for flag, port in (("--port", config.port), ("--grpc-port", config.grpc_port)):
            if is_taken(config.hostname, port):
                raise LaunchError(f"port {port} is taken; choose another with {flag}")
        model = resolve(request, log)
        config = with_model_length(config, model.max_positions)
        started_s = time.monotonic()  # after a download or conversion, which happens once
        with run_folder() as run_dir, closing(LogPump()) as pump:
            return _supervisor(config, machine, model, run_dir, environ, log, pump, programs, started_s).run()


def _supervisor(
    config: LauncherConfig,
    machine: Machine,
    model: ResolvedModel,
    run_dir: Path,
    environ: Mapping[str, str],
    log: LogWriter,
    pump: LogPump,
    programs: Programs,
    started_s: float,
) -> Supervisor:
    assert config.num_shard is not None
    paths = RunPaths(run_dir, config.shard_uds_path or str(run_dir / "shard"))
    if len(os.fsencode(paths.uds_prefix)) > MAX_UDS_PREFIX_BYTES:
        raise LaunchError(f"{run_dir} is too long for a socket's path; set TMPDIR or --shard-uds-path to a shorter one")
    for rank, descriptor in enumerate(_output_pipes(paths, config.num_shard)):
        pump.add(descriptor, partial(log.relay, f"shard {rank}"))

    def follow_agent() -> tuple[Callable[[str], None], Callable[[], None]]:
        agent_log = AgentLog()

        def write(entries: list[tuple[str, str]]) -> None:
            for level, message in entries:
                log.log(level, "shards", message)

        return lambda line: write(agent_log.feed(line)), lambda: write(agent_log.close())

    def announce() -> None:
        host = reachable_host(config.hostname)
        host = f"[{host}]" if ":" in host else host
        log.info(
            f"ready in {time.monotonic() - started_s:.1f} s: {model.model_id} ({config.dtype}), "
            f"{config.num_shard} shard{'s' if config.num_shard != 1 else ''}, {_speculation(config, model)}; "
            f"gRPC {host}:{config.grpc_port}, HTTP http://{host}:{config.port}"
        )

    if model.weights_note:
        log.info(f"weights of {model.model_id}: {model.weights_note}")
    agent = agent_spec(config, model, paths, environ, list(programs.agent), num_gpus=machine.num_gpus)
    router = router_spec(config, model, paths, environ, list(programs.router))
    return Supervisor(
        [Service(agent, follow_agent), Service(router, lambda: (partial(log.relay, "router"), None))],
        run_dir=run_dir,
        pump=pump,
        log=log,
        is_ready=partial(is_healthy, config.hostname, config.port),
        on_ready=announce,
    )


def _output_pipes(paths: RunPaths, num_shard: int) -> list[int]:
    """Named pipes for the shards' output, one per rank; returns descriptors to read them.

    Opened for writing too, so that they never report an end of file while shards come and go.
    """
    names = [f"{paths.shard_output}-{rank}" for rank in range(num_shard)]
    for name in names:
        os.mkfifo(name, 0o600)
    return [os.open(name, os.O_RDWR | os.O_NONBLOCK) for name in names]


def _speculation(config: LauncherConfig, model: ResolvedModel) -> str:
    """What is known of it here: how many heads there are, and whether the model's weights hold some, the shards log."""
    if config.speculate == 0:
        return "speculation off"
    heads = f" with Medusa heads ({model.medusa_name})" if model.medusa_path else ""
    if config.speculate == "auto":
        return f"speculation as far as it pays{heads}"
    if config.speculate is not None:
        return f"speculation up to {config.speculate} tokens{heads}"
    return f"speculation{heads}" if heads else "speculation only if the model has heads"
