"""One frozen `Config` per node: a TOML file, then `CRDTSYNC_` variables, then what the caller overrides.

Every field says its unit, its range and what it trades. Keys that nobody knows are errors with a
suggestion, wherever they were written: a typo in a limit must not silently mean the default.
`load` also remembers where each value came from (`crdtsync config show --origin`).

Until keys exist (the security issue), nothing binds or dials off loopback: a node that strangers
can reach and nobody authenticates to is a remote code execution service with extra steps.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from crdtsync.errors import ConfigError
from crdtsync.identifiers import is_region

ENV_PREFIX: Final = "CRDTSYNC_"
#: Variables under our prefix that are not settings of a node.
ENV_OTHERS: Final = frozenset({"CRDTSYNC_NODE", "CRDTSYNC_CONFIG"})
ENV_OTHER_PREFIXES: Final = ("CRDTSYNC_CI_", "CRDTSYNC_TEST_", "CRDTSYNC_BENCH_")

DEV_LOST_AFTER_MS: Final = 3_000  # `crdtsync dev`: on one machine silence means death, not weather

MIB: Final = 1 << 20
GIB: Final = 1 << 30

_LATER = "until keys exist (mTLS and tokens are not built yet) crdtsync stays on loopback; use 127.0.0.1 or localhost"


class Listen(BaseModel):
    """Where a port listens. Loopback only, until security lands."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="Address to bind. Loopback addresses only for now.")
    port: int = Field(default=0, ge=0, le=65_535, description="TCP port; 0 lets the system choose one at each start.")
    reuse_port: bool = Field(
        default=False,
        description="Bind with SO_REUSEPORT, so that a supervisor may hold the port while this node is restarted. "
        "Trades the check that nobody else listens here.",
    )


class Limits(BaseModel):
    """Bounds on what others may make this node hold in memory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    client_frame_bytes: int = Field(
        default=4 * MIB,
        ge=64 << 10,
        le=4 * MIB,
        description="Bytes of one frame from a client or worker. Larger lets bigger batches and results in, and lets "
        "one connection hold that much memory before it is checked.",
    )
    peer_frame_bytes: int = Field(
        default=16 * MIB,
        ge=9 * MIB,  # the largest commit, 8 MiB, travels in a frame of its own
        le=64 * MIB,
        description="Bytes of one frame from a peer region, after which the link is closed. All members must agree.",
    )
    client_queue_bytes: int = Field(
        default=32 * MIB,
        ge=MIB,
        le=GIB,
        description="Bytes that wait to be sent to one client or worker; beyond it that connection is closed. Larger "
        "forgives slow readers and costs memory for each.",
    )
    peer_queue_bytes: int = Field(
        default=64 * MIB,
        ge=MIB,
        le=GIB,
        description="Bytes that wait to be sent to one peer; beyond it the link is closed and resumes from the log.",
    )
    connections: int = Field(
        default=512,
        ge=1,
        le=65_536,
        description="Clients and workers connected at once; further ones are turned away. Each costs about 100 KiB.",
    )
    requests_per_connection: int = Field(
        default=1_024,
        ge=1,
        le=65_536,
        description="Unanswered requests of one connection (waits and watches count); further ones are refused.",
    )


class Config(BaseSettings):
    """Everything a node can be told. Immutable: a change is a restart."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__", validate_default=True
    )

    cluster: str = Field(
        default="crdtsync",
        min_length=1,
        max_length=64,
        description="Name of the cluster. Nodes of another name are refused, so two clusters never merge by mistake.",
    )
    region: str = Field(description="This node's region: lower-case letters, digits, dashes, 32 at most.")
    node_name: str = Field(
        default="a",
        description="This node's name inside its region. Its incarnations follow one another; keep it for good.",
    )
    members: dict[str, str] = Field(
        default_factory=dict,
        description="The founding regions of the cluster and their peer URLs (ws://HOST:PORT), the same on every node; a "
        "region alone may leave it empty. Once the data_dir knows who belongs, only the URLs count.",
    )
    join: bool = Field(
        default=False,
        description="On an empty data_dir: this region is no founder, it waits to be added (`crdtsync region add`) and "
        "learns from the other `members` here who belongs. Ignored once the data_dir knows.",
    )
    data_dir: Path = Field(description="Directory of the log, one per node, on a disk that keeps what it acknowledged.")
    listen: Listen = Field(default_factory=Listen, description="Port for clients and workers.")
    peer: Listen = Field(default_factory=Listen, description="Port for the other regions.")
    limits: Limits = Field(default_factory=Limits, description="Bounds on connections and frames.")

    lost_after_ms: int = Field(
        default=30_000,
        ge=500,
        le=86_400_000,
        description="Milliseconds of silence after which a region counts as lost and `takeover` tasks move. Shorter "
        "recovers sooner and runs more tasks twice across a short cut.",
    )
    lease_ms: int = Field(
        default=10_000,
        ge=500,
        le=600_000,
        description="Milliseconds that a lease lasts unless it is renewed; the same on every node. After a start a node "
        "votes for nobody for so long. Shorter lets `quorum` tasks go on sooner when their holder dies; a round trip to a "
        "majority and a write to its disks should fit into a fifth of it, and must into two fifths.",
    )
    max_hold_lease_ms: int = Field(
        default=60_000,
        ge=500,
        le=86_400_000,
        description="Milliseconds after which a region hands on the lease of a busy queue for which others wait.",
    )
    retention_s: int = Field(
        default=86_400,
        ge=0,
        le=366 * 86_400,
        description="Seconds that commits stay on disk after every member has them. Longer keeps more to inspect and "
        "lets a restored disk catch up without a snapshot; shorter frees disk.",
    )
    history_limit_bytes: int = Field(
        default=10 * GIB,
        ge=16 * MIB,
        description="Bytes of log at which new submissions are refused (completions never) because a member is absent.",
    )
    heads_interval_ms: int = Field(
        default=2_000,
        ge=100,
        le=3_000,
        description="Milliseconds between exchanges of heads, jittered. Shorter repairs a dropped commit sooner and "
        "costs one small frame per peer each time.",
    )
    worker_lost_after_ms: int = Field(
        default=3_000,
        ge=500,
        le=3_600_000,
        description="Milliseconds without a heartbeat after which a connected worker's attempts count as lost.",
    )
    drain_timeout_s: float = Field(
        default=20.0,
        ge=0,
        le=3_600,
        description="Seconds that SIGTERM leaves to running handlers before the node closes. Longer finishes more work "
        "here; systemd's TimeoutStopSec must exceed it.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log line that is written to stderr."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # `load` merges the layers itself, to know where each value came from; building a Config by hand in a test
        # must not pick up the environment of whoever runs it.
        return (init_settings,)

    @field_validator("region", "node_name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not is_region(value):
            raise ValueError("1 to 32 lower-case letters, digits and dashes, not beginning with a dash")
        return value

    @field_validator("members")
    @classmethod
    def _are_members(cls, value: dict[str, str]) -> dict[str, str]:
        for region, url in value.items():
            if not is_region(region):
                raise ValueError(f"{region!r} is not a region: 1 to 32 lower-case letters, digits and dashes")
            problem = peer_url_problem(url)
            if problem:
                raise ValueError(f"{region}: {problem}")
        return value

    @field_validator("listen", "peer")
    @classmethod
    def _is_on_loopback(cls, value: Listen) -> Listen:
        if not is_loopback(value.host):
            raise ValueError(f"a bind to {value.host or 'all addresses'!s} is refused: {_LATER}")
        return value

    @model_validator(mode="after")
    def _is_a_member(self) -> Config:
        if self.members and self.region not in self.members:
            known = ", ".join(sorted(self.members))
            raise ValueError(f"region {self.region!r} is not among members ({known}); members lists this region too")
        if self.join and not set(self.members) - {self.region}:
            raise ValueError("a region that joins needs the URL of at least one member, in members")
        return self

    @property
    def regions(self) -> tuple[str, ...]:
        """Every member, this one included, sorted."""
        return tuple(sorted({*self.members, self.region}))


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration and, per dotted key, where its value came from."""

    config: Config
    origins: Mapping[str, str]


def load(
    path: Path | None = None, overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Loaded:
    """Read a node's configuration: defaults, then the file, then the environment, then `overrides`.

    Args:
        path: The TOML file; None looks nowhere.
        overrides: Nested values that win over everything (options of a command line).
        environ: For tests; the process's own by default.

    Raises:
        ConfigError: With every problem found, one line each, in `facts["problems"]`.
    """
    environ = os.environ if environ is None else environ
    from_file = _read_toml(path) if path is not None else {}
    from_env = _read_environment(environ)
    layers = [(str(path), from_file), ("environment", from_env), ("command line", dict(overrides or {}))]
    problems = [f"{origin}: {problem}" for origin, values in layers for problem in _unknown_keys(values, Config)]
    problems += [f"environment: {problem}" for problem in _unknown_variables(environ)]
    if problems:
        raise _config_error(problems)
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, values in layers:
        _merge(merged, values)
        for key in _leaves(values):
            origins[key] = f"{variable_of(key)}" if origin == "environment" else origin
    try:
        config = Config(**merged)
    except ValidationError as error:
        raise _config_error(
            [_problem(item["loc"], item["msg"], item.get("input"), origins) for item in error.errors()]
        ) from None
    for key in _leaves(config.model_dump()):
        origins.setdefault(key, "default")
    return Loaded(config, origins)


def peer_url_problem(url: str) -> str:
    """Why a peer cannot be dialled at `url`, "" if it can."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:  # no number, or none that a port can have
        port = None
    if not port or parts.scheme != "ws" or not parts.hostname:
        return f"{url!r} is not a peer URL; write ws://HOST:PORT"
    return "" if is_loopback(parts.hostname) else f"{parts.hostname} is off loopback: {_LATER}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. A name other than localhost may resolve to anything."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def flat(config: Config) -> dict[str, Any]:
    """The configuration as dotted keys and plain values, in the order of the fields."""
    dumped = config.model_dump(mode="json")
    return {key: _at(dumped, key) for key in _leaves(dumped)}


def variable_of(key: str) -> str:
    """The environment variable that sets a dotted key."""
    return ENV_PREFIX + key.replace(".", "__").upper()


# Reading -----------------------------------------------------------------------------------------


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a TOML file with --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    source = EnvSettingsSource(Config)
    source.env_vars = {key.lower(): value for key, value in environ.items()}
    try:
        return source()
    except ValueError as error:  # a nested value that is not JSON
        raise ConfigError(f"environment: {error}") from None


def _unknown_keys(values: Mapping[str, Any], model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        field = model.model_fields.get(key)
        if field is None:
            yield f"unknown key {prefix + key!r}{_did_you_mean(key, model.model_fields, prefix)}"
        elif isinstance(value, Mapping) and (inner := _section(model, key)) is not None:
            yield from _unknown_keys(value, inner, f"{prefix}{key}.")


def _unknown_variables(environ: Mapping[str, str]) -> Iterator[str]:
    known = {variable_of(key): key for key in _known_keys(Config)}
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name in ENV_OTHERS or name.startswith(ENV_OTHER_PREFIXES):
            continue
        if name.upper() not in known and not name.upper().startswith(ENV_PREFIX + "MEMBERS__"):
            yield f"unknown variable {name}{_did_you_mean(name, known, '')}"


def _known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key in model.model_fields:
        yield prefix + key
        if (inner := _section(model, key)) is not None:
            yield from _known_keys(inner, f"{prefix}{key}.")


def _section(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    annotation = model.model_fields[key].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _did_you_mean(key: str, known: Mapping[str, Any], prefix: str) -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f"; did you mean {prefix + close[0]!r}?" if close else ""


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _at(values: Mapping[str, Any], key: str) -> Any:
    value: Any = values
    for part in key.split("."):
        value = value[part]
    return value


def _problem(location: tuple[int | str, ...], message: str, value: Any, origins: Mapping[str, str]) -> str:
    key = ".".join(str(part) for part in location)
    if not key:
        return message.removeprefix("Value error, ")
    origin = next((origins[known] for known in origins if known == key or known.startswith(f"{key}.")), "")
    text = message.removeprefix("Value error, ").replace("Field required", "is missing: set it")
    shown = f" (got {value!r})" if isinstance(value, str | int | float | bool) else ""
    return f"{origin + ': ' if origin else ''}{key}: {text}{shown}"


def _config_error(problems: list[str]) -> ConfigError:
    return ConfigError("\n".join(problems), problems=problems)
