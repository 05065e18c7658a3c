"""`streamssl pretrain`: train a recipe on shards."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from shards.crops.recipe import DEFINITION
from shards.errors import ConfigError
from shards.member_names import Keys
from shards.redaction import redact
from streamssl.commands.argument_parser import parse, unknown
from streamssl.commands.backbone_words import take_options
from streamssl.config.run_config import RunConfig, read_toml
from streamssl.config.sizing import Sizing
from streamssl.recipes import RECIPES

if TYPE_CHECKING:
    from streamssl.runs.placement import Placement


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrain:
    """Train a recipe on shards. The same command continues a run that was stopped."""

    data: tuple[str, ...]
    """Folders, globs, brace patterns such as 's3://bucket/{0000..0999}.tar', single tars, or
    folders of images (packed first)."""
    out: Path
    """The run folder; if it holds a run, that run continues."""
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Go on from this checkpoint of --out, such as step-00001200, instead of the newest: learning
    rate, schedule, weight decay, precision, temperature, epsilon, engine, compilation,
    micro-batches and clipping may then change. What was trained after it is set aside in the run
    folder."""
    weights: tuple[str, ...] = ()
    """Share of each --data, such as 0.7 0.3, counted in chunks; none: all shards are one source.
    A resumed run uses other weights from its next block on."""
    subset: str | None = None
    """A .parquet, .txt or .npy list of keys or uids: only these samples are the data."""
    keys: Keys = "auto"
    """Rule of sample keys: first_dot as in WebDataset, or last_dot for file names with dots; auto
    takes what the shards show. A resumed run keeps its rule."""
    verified: tuple[Path, ...] = ()
    """Reports of `streamssl shards verify --report`: the irregular shards in them are read from
    byte 0."""
    cluster: str = "none"
    """none: threads of this process; local: a Ray started here; auto or ray://HOST:10001: a running
    Ray."""
    readers: str = "2"
    """Number of readers, each on one core, or a range such as 4..200, in which it follows the need
    of the trainers."""
    trainers: int = 1
    """Number of trainers that share each batch, each on a GPU, or on a core if there is none; not
    with --cluster none."""
    reader_pool: tuple[str, ...] = ()
    """Labels of the nodes for readers, such as pool=readers; several in order of preference."""
    trainer_pool: tuple[str, ...] = ()
    """Labels of the nodes for trainers, such as pool=trainers."""
    trainer_gpus: int | None = None
    """GPUs of a trainer; by default one if the cluster has any."""
    decode: Literal["readers", "trainers", "auto"] | None = None
    """Actors that crop: readers; trainers, after readers verified the images; auto measures both.
    By default readers, trainers with --engine dali-gpu, and as before in a resumed run."""
    cache: Path | None = None
    """A folder on a local disk that caches shards for later epochs and runs."""
    cache_bytes: int = 100 << 30
    """Largest size of --cache in bytes."""
    metrics_port: int = 0
    """Port of /metrics on the loopback address; 0 takes any free one."""
    debug_ports: str | None = None
    """Ports such as 9500-9599 on which each process of a cluster serves its counters and thread
    stacks: on the loopback address with --cluster local, otherwise on that of its node."""
    num_samples: int | None = None
    """Number of samples of the data, for --sizes auto; by default estimated from bytes."""
    price: tuple[str, ...] = ()
    """Dollars per hour of a node of a pool, such as pool=readers=0.05, or 0.05 for each node:
    /metrics then shows the cost of the run."""
    tensorboard: bool = False
    """Write loss and readings for TensorBoard, too, into the folder `tensorboard` of the run; needs
    the extra `tensorboard`."""
    log_every: int | None = None
    """Steps that a GPU of this process may be ahead of the log, which gets every step all the same;
    1 waits for each step. By default 10; 1 with --max-skipped-steps and on Ray. A CPU waits
    anyway."""
    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    sizing: Annotated[Sizing | None, tyro.conf.Suppress] = None


def parse_pretrain(arguments: list[str]) -> Pretrain:
    """Parse the name of a recipe and the options after it. Raises ConfigError."""
    name = arguments[0]
    recipe = _recipe(name)
    given = Pretrain(data=tyro.MISSING, out=tyro.MISSING, run=recipe)
    words, options = take_options(arguments[1:], recipe.backbone.options)
    parsed = parse(Pretrain, f"streamssl pretrain {name}", words, given)
    if options:
        backbone = parsed.run.backbone
        backbone = replace(backbone, options={**backbone.options, **options})
        parsed = replace(parsed, run=replace(parsed.run, backbone=backbone))
    by_hand = given_by_hand(arguments[1:])
    origins = {name: origin for name, origin in parsed.run.origins.items() if name not in by_hand}
    if parsed.num_samples is not None and (parsed.num_samples < 1 or parsed.run.sizes == "given"):
        raise ConfigError(
            f"--num-samples {parsed.num_samples} with --sizes {parsed.run.sizes}; it is the number "
            "of samples of the data, at least 1, and only --sizes auto uses it: give that, or "
            "leave --num-samples out"
        )
    return replace(
        parsed,
        run=replace(parsed.run, origins=origins),
        sizing=Sizing(recipe=recipe, by_hand=by_hand, num_samples=parsed.num_samples),
    )


def given_by_hand(arguments: list[str]) -> frozenset[str]:
    """Return the names of the options, as config.toml spells them."""
    options = (word[2:].partition("=")[0] for word in arguments if word.startswith("--"))
    return frozenset(option.replace("-", "_") for option in options)


def _recipe(name: str) -> RunConfig:
    """Return a recipe by name, or the settings of an earlier run from its config.toml."""
    if name in RECIPES:
        return RECIPES[name]()
    if name.endswith(".toml"):
        return replace(read_toml(Path(name)), crop_definition=DEFINITION)
    raise ConfigError(unknown(f"recipe {name!r}", name, RECIPES) + ", or the config.toml of a run")


def placement_of(parsed: Pretrain) -> "Placement":
    """Return the placement of the run. Raises ConfigError."""
    from cluster.actors.autoscaler import parse_range
    from cluster.monitoring.node_costs import parse_prices
    from cluster.monitoring.process_pages import parse_ports
    from shards.stores.disk_cache import CacheConfig
    from streamssl.runs.placement import Placement

    cache = None
    if parsed.cache is not None:
        cache = CacheConfig(
            folder=str(parsed.cache.expanduser().resolve()), max_bytes=parsed.cache_bytes
        )
    min_readers, max_readers = parse_range(parsed.readers)
    return Placement(
        cluster=parsed.cluster,
        readers=min_readers,
        max_readers=max_readers,
        trainers=parsed.trainers,
        reader_pools=parsed.reader_pool,
        trainer_pools=parsed.trainer_pool,
        trainer_gpus=parsed.trainer_gpus,
        metrics_port=parsed.metrics_port,
        cache=cache,
        decode=parsed.decode,
        prices=parse_prices(parsed.price),
        tensorboard=parsed.tensorboard,
        debug_ports=None if parsed.debug_ports is None else parse_ports(parsed.debug_ports),
        log_every=parsed.log_every,
    )


def run_pretrain(
    parsed: Pretrain,
    console: Console,
    stop: Callable[[], bool],
    placement: "Placement | None" = None,
) -> bool:
    """Train and print a summary; return False if it was stopped before its last step."""
    # Printed first: the imports of Ray and torch take seconds.
    console.print(f"{parsed.run.method_name} from {' '.join(map(redact, parsed.data))}")
    placement = placement or placement_of(parsed)
    from streamssl.runs.run_data import DataConfig
    from streamssl.runs.run_folder import check_out
    from streamssl.runs.run_start import start_run

    data = DataConfig(
        patterns=parsed.data,
        weights=parsed.weights,
        subset=parsed.subset,
        verified=parsed.verified,
        keys=parsed.keys,
    )
    check_out(parsed.out)
    from streamssl.pretrain.run import check_settings, pretrain_started

    check_settings(parsed.run, placement, parsed.out)
    with start_run(parsed.run, data, parsed.out, placement, console) as opened:
        summary = pretrain_started(
            parsed.run,
            opened,
            parsed.out,
            placement,
            console,
            stop,
            sizing=parsed.sizing,
            start=parsed.from_,
        )
    if not summary.finished:
        console.print(f"stopped at step {summary.step}; the same command continues from there")
        return False
    console.print(
        f"done: {summary.num_samples:,} images at {summary.images_per_second:,.0f}/s, data "
        f"wait {summary.data_wait_share:.1%}; {summary.checkpoint}"
    )
    return True
