"""Command lines and environments of the two children, from a settled configuration. Flags are the contract between
the three packages: what stands here must be what `python -m shard.agent` and `python -m router` accept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.config import LauncherConfig, flag_name
from launcher.options import without_variables
from launcher.process import ChildSpec
from launcher.resolve import ResolvedModel

# The agent's own restarts of the shard group, before the launcher has to start a new agent.
GROUP_RESTARTS = 3
# It ends its shards and itself at once; the kernel may take a while to free what a shard holds.
AGENT_GRACE_S = 15.0


@dataclass(frozen=True, slots=True)
class RunPaths:
    """`run_dir` is private to this launch; shard r listens on `uds_prefix`-r and prints to `shard_output`-r."""

    run_dir: Path
    uds_prefix: str

    @property
    def shard_output(self) -> Path:
        return self.run_dir / "output"


def agent_spec(
    config: LauncherConfig,
    model: ResolvedModel,
    paths: RunPaths,
    environ: Mapping[str, str],
    agent: list[str],
    *,
    num_gpus: int,
) -> ChildSpec:
    """`agent` is a command without its flags; it has a shard for each rank and hands on flags that are not its own.

    `num_gpus` are visible, and what is settled relies on them.
    """
    command = [*agent, *_agent_flags(config, paths), *_shard_flags(config, model, paths), f"--num-gpus={num_gpus}"]
    return ChildSpec("shards", command, _shard_environ(config, environ), AGENT_GRACE_S)


def router_spec(
    config: LauncherConfig, model: ResolvedModel, paths: RunPaths, environ: Mapping[str, str], router: list[str]
) -> ChildSpec:
    """`router` is a command without its flags."""
    command = [*router, *_router_flags(config, model, paths)]
    # The router ends its drain by itself at the timeout; the rest is for closing its servers.
    return ChildSpec("router", command, _child_environ(environ), config.graceful_termination_timeout + 5.0)


def _agent_flags(config: LauncherConfig, paths: RunPaths) -> list[str]:
    return _flags(
        num_shard=config.num_shard,
        max_restarts=GROUP_RESTARTS,
        meeting_place=paths.run_dir / "meeting",
        shard_output=paths.shard_output,
    )


def _shard_flags(config: LauncherConfig, model: ResolvedModel, paths: RunPaths) -> list[str]:
    return _flags(
        model_path=model.path,
        dtype=config.dtype,
        quantize=config.quantize,
        kv_cache_dtype=config.kv_cache_dtype,
        medusa_path=model.medusa_path,
        speculate=config.speculate,
        speculation_method=config.speculation_method,
        tree_size=config.tree_size,
        tree_width=config.tree_width,
        draft_min_probability=config.draft_min_probability,
        max_total_tokens=config.max_total_tokens,
        max_batch_size=config.max_batch_size,
        max_batch_prefill_tokens=config.max_batch_prefill_tokens,
        max_batch_draft_tokens=config.max_batch_draft_tokens,
        max_batch_total_tokens=config.max_batch_total_tokens,
        block_size=config.block_size,
        memory_fraction=config.cuda_memory_fraction,
        threads=config.threads,
        uds_path=paths.uds_prefix,
        run_dir=paths.run_dir,
        collective_timeout=config.collective_timeout,
        weights_note=model.weights_note,
        json_output=config.json_output,
        log_level=config.log_level,
    )


def _router_flags(config: LauncherConfig, model: ResolvedModel, paths: RunPaths) -> list[str]:
    return _flags(
        model_path=model.path,
        model_id=model.model_id,
        revision=config.revision,
        num_shard=config.num_shard,
        shard_uds_path=paths.uds_prefix,
        hostname=config.hostname,
        port=config.port,
        grpc_port=config.grpc_port,
        max_concurrent_requests=config.max_concurrent_requests,
        max_input_tokens=config.max_input_tokens,
        payload_limit=config.payload_limit,
        max_stop_sequences=config.max_stop_sequences,
        graceful_termination_timeout=config.graceful_termination_timeout,
        step_timeout=config.step_timeout,
        run_dir=paths.run_dir,
        disable_prefix_caching=config.disable_prefix_caching,
        json_output=config.json_output,
        log_level=config.log_level,
    )


def _flags(**values: object) -> list[str]:
    """Unset values and switches that are off are left out; "" is a value."""
    words: list[str] = []
    for name, value in values.items():
        if value is True:
            words.append(flag_name(name))
        elif value is not None and value is not False:
            # One word, so that a value that starts with "-" is not read as a flag.
            words.append(f"{flag_name(name)}={value}")
    return words


def _child_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Without the launcher's own variables: a child is told everything on its command line, and nothing twice."""
    return {**without_variables(environ), "PYTHONUNBUFFERED": "1"}


def _shard_environ(config: LauncherConfig, environ: Mapping[str, str]) -> dict[str, str]:
    defaults = {
        # Ranks that share no memory connect to each other over this, and nobody else's ranks do.
        "GLOO_SOCKET_IFNAME": "lo",
        # What malloc gives in huge pages: 3 to 4 % of a step of one sequence on a CPU (bench/RESULTS.md, section 9).
        # The KV cache and the weights of the compiled kernels ask for such pages themselves (shard/cpu/huge_pages.py).
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    # Threads wait about 0.1 ms for their next piece of a step before they sleep. Asleep at once, a step by torch's own
    # operations took 49 ms, not 29, on two cores; spinning without end takes the core that the router needs between
    # steps, and with more threads than cores it was measured to be 3 to 40 times slower. Who has set a policy keeps it.
    if "OMP_WAIT_POLICY" not in environ:
        defaults |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "20000"}
    ours = {
        # Without it torch's agent opens a store for the ranks all the same, at a port of every interface.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "OMP_NUM_THREADS": str(config.threads),
    }
    # The agent would take a foreign rank or rendezvous, as torchrun leaves them to what it starts, for its own.
    inherited = {k: v for k, v in _child_environ(environ).items() if not k.startswith(("PET_", "TORCHELASTIC_"))}
    return {**defaults, **inherited, **ours}
