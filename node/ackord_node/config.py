"""cluster.yaml: what a cluster is, checked before anything starts (DESIGN section 6).

Two kinds of settings, in separate sections. ``cluster``, ``coordination``, ``replication`` and
``limits`` must agree on every node: leases and quorums are counted from them, so nodes compare
``ClusterConfig.digest()``. ``nodes`` and ``defaults`` hold what may differ per process.

Every wrong or unknown key is a ``ConfigError`` with the file, the line, the key's whole name, the
value found and what was expected. The reader therefore works on YAML nodes, which know their lines.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import ipaddress
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import yaml

from ackord.wire.limits import DEFAULT_LIMITS, Limits

LOG_LEVELS = ("debug", "info", "warning", "error")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_ROOT = re.compile(r"(/[A-Za-z0-9][A-Za-z0-9_.-]*)+")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9][0-9_]*")
_NAME_EXPECTED = "a name of letters, digits, - and _ (at most 63)"
_ADDRESS_EXPECTED = "host:port, for example 127.0.0.1:7801"
_COORDINATION_EXPECTED = (
    "zookeeper://host:port[,host:port...]/path, for example zookeeper://127.0.0.1:2181/ackord"
)

_T = TypeVar("_T")


class ConfigError(Exception):
    """cluster.yaml cannot be used; the message starts with ``file:line:`` where there is a line."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a process listens; ``str()`` gives ``host:port`` with brackets around an IPv6 host."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self}"


@dataclass(frozen=True, slots=True)
class Coordination:
    """The coordination service: ``zookeeper`` with hosts and a root path, or ``memory`` with neither."""

    scheme: str
    hosts: tuple[Address, ...] = ()
    root: str = ""


@dataclass(frozen=True, slots=True)
class Replication:
    """How tablets are replicated; field by field the ``replication`` section, with its defaults."""

    replicas: int = 3  # copies of every tablet
    min_in_sync: int = 2  # writes are refused below this many in-sync copies (R11)
    lease_ms: int = 1000  # L: a replica reads locally this long after it asked for the lease (R6)
    session_timeout_ms: int = 3000  # asked of the coordination service; decides takeover time, never safety
    confirm_timeout_ms: int = 1000  # a member that has not confirmed a write by then is removed (R9)
    clock_drift_max_ppm: int = 1000  # rho: bound on the drift between two clocks, scales lease waits (R7)


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """What may differ per node: the ``defaults`` section, overridden in a node's own entry."""

    log_level: str = "info"
    block_cache_mib: int = 160  # RocksDB's cache of uncompressed blocks
    disk_reserve_mib: int = 256  # below this much free space the node leaves the in-sync sets


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node: where it listens, where its data is (absolute), and its process settings."""

    name: str
    address: Address
    data: Path
    settings: ProcessSettings = ProcessSettings()


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """A whole cluster.yaml, checked. ``limits`` holds only the overrides of ``Limits``' defaults."""

    path: Path
    cluster: str
    coordination: Coordination
    nodes: dict[str, NodeConfig]
    replication: Replication = Replication()
    limits: dict[str, int] = field(default_factory=dict)

    def node(self, name: str) -> NodeConfig:
        """The named node; a ConfigError that lists the names if there is none."""
        try:
            return self.nodes[name]
        except KeyError:
            known = ", ".join(self.nodes)
            raise ConfigError(f"{self.path}: there is no node {name!r}; the nodes are {known}") from None

    def effective_limits(self) -> Limits:
        return dataclasses.replace(DEFAULT_LIMITS, **self.limits)

    def digest(self) -> str:
        """16 hex digits over what must agree in the whole cluster.

        The order of the coordination hosts, and a value written out that is the default, change nothing.
        """
        shared = {
            "cluster": self.cluster,
            "coordination": [
                self.coordination.scheme,
                sorted(str(host) for host in self.coordination.hosts),
                self.coordination.root,
            ],
            "replication": dataclasses.asdict(self.replication),
            "limits": {k: v for k, v in self.limits.items() if v != getattr(DEFAULT_LIMITS, k)},
        }
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:16]


def load(path: str | Path) -> ClusterConfig:
    """Reads and checks a cluster.yaml; ConfigError with the first fault found."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    return parse(text, path)


def parse(text: str, path: Path) -> ClusterConfig:
    """``load`` for a text; ``path`` names it in errors and is where relative data folders start."""
    try:
        document = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: is not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: is nested too deeply") from error
    if document is None:
        raise ConfigError(f"{path}: is empty; expected the keys cluster, coordination and nodes")
    return _read_cluster(_Section(path, "", document))


# ------------------------------------------------------------------------------- the sections


def _read_cluster(top: _Section) -> ClusterConfig:
    top.only("cluster", "coordination", "replication", "limits", "defaults", "nodes")
    cluster = top.take("cluster", _name)
    coordination = top.take("coordination", _coordination)
    replication = top.take("replication", _replication, Replication())
    limits: dict[str, int] = top.take("limits", _limits, {})
    defaults = top.take("defaults", _defaults, ProcessSettings())
    nodes = top.take("nodes", lambda value: _read_nodes(value.section(), defaults))
    if replication.replicas > len(nodes):
        where = top.value("replication", "nodes")
        if where.name == "replication":
            where = where.section().value("replicas")
        raise where.error(
            f"replication.replicas is {replication.replicas}, but there are only {len(nodes)} nodes"
        )
    return ClusterConfig(top.path, cluster, coordination, nodes, replication, limits)


def _replication(value: _Value) -> Replication:
    section, default = value.section(), Replication()
    bounds = {
        "replicas": (1, 9),
        "min_in_sync": (1, 9),
        "lease_ms": (100, 10_000),
        "session_timeout_ms": (1_000, 60_000),
        "confirm_timeout_ms": (100, 60_000),
        "clock_drift_max_ppm": (0, 100_000),
    }
    section.only(*bounds)
    read = {
        name: section.take(name, _whole_number(low, high), getattr(default, name))
        for name, (low, high) in bounds.items()
    }
    replication = Replication(**read)
    if replication.min_in_sync > replication.replicas:
        raise section.value("min_in_sync", "replicas").error(
            f"replication.min_in_sync is {replication.min_in_sync}, more than "
            f"replication.replicas ({replication.replicas}); no write could ever be acknowledged"
        )
    return replication


def _limits(value: _Value) -> dict[str, int]:
    section = value.section()
    section.only(*_names(Limits))
    return {name: section.take(name, _whole_number(1, 2**40)) for name in section.keys_in_order()}


def _names(kind: type[Replication | Limits | ProcessSettings]) -> list[str]:
    return [setting.name for setting in dataclasses.fields(kind)]


def _read_nodes(section: _Section, defaults: ProcessSettings) -> dict[str, NodeConfig]:
    nodes: dict[str, NodeConfig] = {}
    for name in section.keys_in_order():
        if not _NAME.fullmatch(name):
            raise section.value(name).error(f"the node name {name!r} is not {_NAME_EXPECTED}")
        entry = section.take(name, lambda value: value.section())
        entry.only("address", "data", *_names(ProcessSettings))
        address = entry.take("address", _address)
        data = (entry.path.parent / entry.take("data", _folder)).resolve()
        node = NodeConfig(name, address, data, _read_settings(entry, defaults))
        for other in nodes.values():
            if _same_host(other.address, node.address):
                _check_apart(entry, other, node)
        nodes[name] = node
    if not nodes:
        raise section.error("has no node; expected one entry per node, such as n1: {address: ..., data: ...}")
    return nodes


def _check_apart(entry: _Section, other: NodeConfig, node: NodeConfig) -> None:
    """Two nodes of one host must not share a port, nor a folder, nor have one folder inside the other's."""
    if other.address.port == node.address.port:
        raise entry.value("address").error(
            f"nodes.{node.name}.address {node.address} is the address of nodes.{other.name}, too"
        )
    if node.data == other.data:
        raise entry.value("data").error(f"nodes.{node.name}.data is also that of nodes.{other.name}")
    if node.data.is_relative_to(other.data) or other.data.is_relative_to(node.data):
        raise entry.value("data").error(
            f"nodes.{node.name}.data and nodes.{other.name}.data lie inside each other"
        )


def _defaults(value: _Value) -> ProcessSettings:
    section = value.section()
    section.only(*_names(ProcessSettings))
    return _read_settings(section, ProcessSettings())


def _read_settings(section: _Section, default: ProcessSettings) -> ProcessSettings:
    return ProcessSettings(
        log_level=section.take("log_level", _log_level, default.log_level),
        block_cache_mib=section.take("block_cache_mib", _whole_number(1, 2**20), default.block_cache_mib),
        disk_reserve_mib=section.take("disk_reserve_mib", _whole_number(0, 2**20), default.disk_reserve_mib),
    )


# ----------------------------------------------------------------------------- single values


def _name(value: _Value) -> str:
    return value.matching(_NAME, _NAME_EXPECTED)


def _log_level(value: _Value) -> str:
    level = value.text("one of " + ", ".join(LOG_LEVELS))
    if level not in LOG_LEVELS:
        raise value.expected("one of " + ", ".join(LOG_LEVELS))
    return level


def _folder(value: _Value) -> Path:
    text = value.text("a folder")
    if not text or "\0" in text:
        raise value.expected("a folder")
    return Path(text)


def _whole_number(low: int, high: int) -> Callable[[_Value], int]:
    def read(value: _Value) -> int:
        expected = f"a whole number from {low} to {high}"
        if not value.is_scalar("int") or not _WHOLE_NUMBER.fullmatch(value.shown):
            raise value.expected(expected)
        number = int(value.shown)
        if not low <= number <= high:
            raise value.expected(expected)
        return number

    return read


def _address(value: _Value) -> Address:
    address = _parse_address(value.text(_ADDRESS_EXPECTED))
    if address is None:
        raise value.expected(_ADDRESS_EXPECTED)
    return address


def _coordination(value: _Value) -> Coordination:
    text = value.text(_COORDINATION_EXPECTED)
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "memory":
        if rest:
            raise value.expected("memory:// with nothing behind it (for tests in one process)")
        return Coordination("memory")
    if separator and scheme != "zookeeper":
        raise value.error(f"{value.name}: {scheme}:// is not supported; expected {_COORDINATION_EXPECTED}")
    authority, slash, root = rest.partition("/")
    hosts = [_parse_address(part) for part in authority.split(",")]
    if not separator or None in hosts or not _ROOT.fullmatch(slash + root):
        raise value.expected(_COORDINATION_EXPECTED)
    if len(set(hosts)) < len(hosts):
        raise value.error(f"{value.name} names a host twice")
    return Coordination(scheme, tuple(host for host in hosts if host is not None), slash + root)


def _parse_address(text: str) -> Address | None:
    host, _, port = text.rpartition(":")
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65_535:
        return None
    if host.startswith("[") and host.endswith("]"):
        try:
            return Address(str(ipaddress.IPv6Address(host[1:-1])), int(port))
        except ValueError:
            return None
    if not _HOST.fullmatch(host) or ".." in host:
        return None
    if re.fullmatch(r"[0-9.]+", host):  # looks like IPv4, so it must be one
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            return None
    return Address(host, int(port))


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _same_host(one: Address, other: Address) -> bool:
    return one.host.lower() == other.host.lower() or (is_loopback(one.host) and is_loopback(other.host))


# ------------------------------------------------------------------- YAML nodes, with their lines


@dataclass(frozen=True, slots=True)
class _Value:
    """One value of the file with its full name; makes the errors about it."""

    path: Path
    name: str
    node: yaml.Node

    @property
    def shown(self) -> str:
        """The value as the user wrote it (a section or list by its kind)."""
        if isinstance(self.node, yaml.ScalarNode):
            return str(self.node.value)
        return "a section" if isinstance(self.node, yaml.MappingNode) else "a list"

    def error(self, message: str) -> ConfigError:
        return ConfigError(f"{self.path}:{self.node.start_mark.line + 1}: {message}")

    def expected(self, what: str) -> ConfigError:
        shown = self.shown
        if self.is_scalar("null"):
            shown = "empty"
        elif self.is_scalar("str"):
            shown = repr(shown)
        return self.error(f"{self.name} is {shown}, expected {what}")

    def is_scalar(self, kind: str) -> bool:
        return isinstance(self.node, yaml.ScalarNode) and self.node.tag == f"tag:yaml.org,2002:{kind}"

    def text(self, what: str) -> str:
        if not self.is_scalar("str"):
            raise self.expected(what)
        return self.shown

    def matching(self, pattern: re.Pattern[str], what: str) -> str:
        text = self.text(what)
        if not pattern.fullmatch(text):
            raise self.expected(what)
        return text

    def section(self) -> _Section:
        return _Section(self.path, self.name, self.node)


class _Section:
    """A mapping of the file: its values by key, in the file's order."""

    def __init__(self, path: Path, name: str, node: yaml.Node) -> None:
        self.path = path
        self.name = name
        self._here = _Value(path, name or "the file", node)
        if not isinstance(node, yaml.MappingNode):
            raise self._here.expected("a section of the form key: value")
        self._values: dict[str, _Value] = {}
        self._lines: dict[str, _Value] = {}
        for key_node, value_node in node.value:
            key = _Value(path, "the key", key_node)
            # YAML reads a bare on/no/1 as something else than text; what was written is what counts
            if not isinstance(key_node, yaml.ScalarNode):
                raise key.expected("a word")
            if key.shown in self._values:
                first = self._lines[key.shown].node.start_mark.line + 1
                raise key.error(f"{self._full(key.shown)} is given twice (first in line {first})")
            self._lines[key.shown] = key
            self._values[key.shown] = _Value(path, self._full(key.shown), value_node)

    def _full(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def keys_in_order(self) -> list[str]:
        return list(self._values)

    def value(self, *keys: str) -> _Value:
        """The value of the first of ``keys`` that is present, or the section itself: for errors about it."""
        return next((self._values[key] for key in keys if key in self._values), self._here)

    def error(self, message: str) -> ConfigError:
        return self._here.error(f"{self._here.name} {message}")

    def take(self, key: str, read: Callable[[_Value], _T], default: _T | None = None) -> _T:
        """The key's value as ``read`` checks it; without a ``default`` the key must be there."""
        value = self._values.get(key)
        if value is not None:
            return read(value)
        if default is None:
            raise self._here.error(f"{self._full(key)} is missing")
        return default

    def only(self, *known: str) -> None:
        """Refuses every other key, with the nearest known one as a hint."""
        for key, written in self._lines.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(known)}"
                raise written.error(f"unknown key {self._full(key)}; {hint}")
