"""One seed from its first to its last moment: a cluster under faults, then healed, then everything is checked.

Safety phase: clients work while the nemesis makes its faults; oracles look at every step of every replica.
Liveness phase: all faults end, and within a bound everything is in sync again and serves. Then what the clients saw
is checked as a whole, and what the replicas hold must be the same everywhere.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

import ackord
from ackord.wire.messages import TableDefinition
from ackord_node.core.history import Retention
from ackord_node.runtime.tablet_host import TabletHost
from tests.sim import cluster_oracle, oracles, version_oracles
from tests.sim.cached import kept_beside
from tests.sim.cluster import Cluster, SimNode
from tests.sim.faults import Nemesis
from tests.sim.history import CONFLICT, CREATE, DROP, GET, INSERT, OK, SCAN, History
from tests.sim.kernel import Process, World
from tests.sim.network import NetworkKnobs
from tests.sim.operation_oracles import Committed, check_operations
from tests.sim.operations import OPERATIONS, Bank, Cells, Operation
from tests.sim.plan import Plan, module_knobs
from tests.sim.recorder_operations import FullRecorder
from tests.sim.rights import Rights
from tests.sim.workload import WORKLOADS, Context, create_load_table, make_workloads, read_final, read_scans

TABLE = "load"
SLOTS_COUNT = 6
START_S = 20.0  # the cluster has formed and its table stands, or the run has no clients
WELL_S = 60.0  # after healing everything is in sync again within this
DRAIN_S = 30.0  # ... and every client's last call has ended
CALL_TIMEOUT_S = 4.0
BUSY = ("register", "counter", "append", "set", "batch", "scan")


@dataclass(slots=True)
class Outcome:
    seed: int
    digest: str = ""
    error: str = ""
    virtual_s: float = 0.0
    ops: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    steps_count: int = 0
    events_count: int = 0
    unheard: Counter[str] = field(default_factory=Counter)


def _node_shown(node: SimNode) -> str:
    n = node.node
    if n is None:
        return ""
    coordination = "up" if n.coordination_is_up else "down"
    peers = [peer for peer in node.cluster.nodes if n.transport.is_up(peer)]
    tables = sorted(n.catalogue.tables)
    return f"coordination {coordination}, links to {peers}, tables {tables} {n.health.reason or ''} {n.refusal or ''}"


def _without_reads(history: History) -> History:
    """With clocks beyond what the cluster was told: what was written, and the last reads; other answers may be old."""
    kept = History()
    kept.ops = [
        op
        for op in history.ops
        if op.client == "final" or (op.kind not in (GET, SCAN) and op.outcome != CONFLICT)
    ]
    return kept


class Walk:
    def __init__(self, plan: Plan, is_wordy: bool = False) -> None:
        self.plan = plan
        self.world = World(plan.seed)
        self.cluster = Cluster(self.world, plan.knobs, NetworkKnobs(plan.network.delay_s), is_wordy)
        self.trace = self.cluster.trace
        self.history = History()
        self.outcome = Outcome(plan.seed)
        self.oracle = cluster_oracle.ClusterOracle()
        self.oracle.reads_are_judged = not plan.has("clocks beyond rho")
        self.oracle.prefix.now = lambda: self.world.now
        self.clients: list[Process] = []
        self.nemesis = Nemesis(self.cluster, plan, self.clients)
        self.is_over = False  # the clients stop
        self._tables_count = 0  # clients that see the table
        self._stores: list[ackord.Store] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._operations: dict[str, Operation] = {}
        self._rng = random.Random(f"{plan.seed} clients")

    # ------------------------------------------------------------------------------- the phases

    def run(self) -> Outcome:
        outcome = self.outcome
        try:
            with module_knobs(self.plan):
                self._begin()
                self.world.run_until(self.world.now + self.plan.seconds)
                self._heal()
                self._check_end()
        except Exception as error:
            outcome.error = f"{type(error).__name__}: {error}"
            self.trace.note(f"!! {outcome.error}")
            raise
        finally:
            outcome.virtual_s = self.world.now
            outcome.digest = self.trace.digest
            outcome.faults = self._faults()
            outcome.ops = Counter(f"{op.kind} {op.outcome}" for op in self.history.ops)
            outcome.steps_count = self.cluster.steps_count
            outcome.events_count = self.world.events_count
            outcome.unheard = Counter(self.world.unheard)
            self.world.close()
        return outcome

    def _begin(self) -> None:
        plan, cluster = self.plan, self.cluster
        cluster.on_step = self._stepped
        if self.oracle.reads_are_judged:
            cluster.on_rights = Rights(cluster).check
        cluster.on_crash = self._crashed
        cluster.expected_crashes = self._is_expected
        late = list(cluster.nodes)[-1] if plan.has("node down from the start") else None
        for node in cluster.nodes.values():
            if node.name != late:
                node.start()
        if late is not None:
            self.trace.fault("node down from the start", late)
            self.world.after(self.plan.seconds * self._rng.uniform(0.3, 0.9), self._start_late, late)
        for kind in ("clocks within rho", "clocks beyond rho"):
            if plan.has(kind):
                self.trace.fault(kind)
        for number in range(plan.clients_count):
            self._add_client(number)
        if plan.has("tables come and go"):
            self._add_client(plan.clients_count, ("tables",), concurrency=1)
        if self._rng.random() < 0.85:  # in the others the cluster forms under faults
            self.world.run_until(START_S, lambda: self._tables_count >= plan.clients_count)
        if plan.has("watch late"):
            cluster.service.watch_delay = 2.0
            cluster.service.watch_loss_rate = 0.1
        if plan.has("compare-and-set unknown"):
            cluster.service.unknown_rate = 0.1
        cluster.network.knobs = plan.network
        self.trace.note("== faults begin")
        self.nemesis.begin()
        if plan.has("disk rolled back"):
            self.nemesis.rollback.keep_images()

    def _start_late(self, name: str) -> None:
        if not self.cluster.nodes[name].is_up:
            self.trace.fault("member added", name)
            self.cluster.nodes[name].start()

    def _add_client(self, number: int, names: tuple[str, ...] = (), concurrency: int = 0) -> None:
        process = self.cluster.client_process()
        self.clients.append(process)
        mine = names or tuple(self._rng.sample(BUSY, 2))
        if self.plan.operations and not names:
            operation = self.plan.operations[number % len(self.plan.operations)]
            if operation == "transfers" and not self.oracle.reads_are_judged:
                operation = "transact"  # transfers judge every read themselves
            mine = (mine[0], operation)
        self._tasks.append(process.start(self._client(process, number, mine, concurrency)))

    async def _client(self, process: Process, number: int, names: tuple[str, ...], concurrency: int) -> None:
        plan = self.plan
        while not self.is_over:
            try:
                store = await self.cluster.connect(
                    process, CALL_TIMEOUT_S, plan.reads[number % len(plan.reads)]
                )
                break
            except ackord.Unavailable:
                continue
        else:
            return
        async with store:
            context = Context(
                client=process.name,
                store=store,
                history=self.history,
                rng=process.rng,
                now=lambda: self.world.now,
                stop=lambda: self.is_over,
                concurrency=concurrency or plan.concurrency,
                timeout_s=CALL_TIMEOUT_S,
                pause_s=plan.pause_s,
            )
            is_loader = names != ("tables",)
            if is_loader and not await create_load_table(
                context, TABLE, plan.tablets_count, SLOTS_COUNT, plan.options
            ):
                return
            workloads = make_workloads(TABLE, SLOTS_COUNT, [name for name in names if name in WORKLOADS])
            workloads += [self._operation(name) for name in names if name in OPERATIONS]
            for workload in workloads:
                if not await workload.prepare(context):
                    return
            self._tables_count += 1
            workloads += kept_beside(names, TABLE, SLOTS_COUNT, plan.seed, number)
            await asyncio.gather(*(workload.run(context) for workload in workloads))

    def _operation(self, name: str) -> Operation:
        """One for all clients."""
        if name not in self._operations:
            self._operations[name] = OPERATIONS[name](TABLE, SLOTS_COUNT)
        return self._operations[name]

    # ------------------------------------------------------------------------------ every step

    def _stepped(self, node: SimNode, host: TabletHost) -> None:
        assert node.node is not None and node.process is not None
        now = node.process.now()
        self.oracle.stepped(node.name, node.node.incarnation, host.replica, now)

    def _crashed(self, node: SimNode) -> None:
        self.oracle.crashed(node.name)
        self.nemesis.crashed(node)

    def _is_expected(self, node: SimNode, reason: str, is_void: bool) -> bool:
        """A node may end itself because of its disk; anything else is a bug."""
        return is_void or any(
            text in reason for text in ("EngineFailed", "a read failed", "could not be removed")
        )

    # --------------------------------------------------------------------------- liveness phase

    def _heal(self) -> None:
        world, trace = self.world, self.trace
        trace.note("== all faults end")
        self.nemesis.heal()
        world.after(0.2, self.nemesis.keep_up)
        self.is_over = True
        self._run_until(lambda: all(task.done() for task in self._tasks), DRAIN_S, "the clients' calls end")
        for task in self._tasks:
            task.result()
        self._run_until(self.is_well, WELL_S, "everything is in sync again and serves")
        trace.note("== everything is well")

    def _run_until(self, is_so: object, seconds: float, what: str) -> None:
        assert callable(is_so)
        end = self.world.now + seconds
        while not is_so():
            if self.world.now >= end:
                raise AssertionError(f"not within {seconds:.0f} s after the faults: {what}; {self.shown()}")
            self.world.run_until(self.world.now + 0.02)

    def is_well(self) -> bool:
        """Every tablet of every table has a coordinator and all its replicas in sync, applied, equal and answering."""
        nodes = self.cluster.nodes.values()
        if not all(n.is_serving and not n.is_leaving and n.node is not None for n in nodes):
            return False
        for node in nodes:
            assert node.node is not None
            if node.node.health.reason is not None or not node.node.coordination_is_up:
                return False
        names = [sorted(n.node.catalogue.tables) for n in nodes if n.node is not None]
        if any(found != names[0] for found in names):
            return False
        tablets = self._tablets()
        return all(self._tablet_is_well(tablet) for tablet in tablets)

    def _tablets(self) -> list[int]:
        node = next(iter(self.cluster.nodes.values())).node
        assert node is not None
        return [t.id for _, table in sorted(node.catalogue.tables.items()) for t in table.tablets]

    def _is_collected(self) -> bool:
        """No disk holds versions that its copy may remove, but for those in blocks that nobody has read yet."""
        for node in self.cluster.nodes.values():
            for tablet, host in node.hosts().items():
                s, engine = host.replica.state, node.engine
                if s.retention is None or engine is None or self.nemesis.damage.is_marked(node):
                    continue
                bounds = s.retention.removable(s.clock.durable)
                if engine.history_excess(tablet, b"", bounds, cluster_oracle.EXCESS_MAX, 1)[0]:
                    return False
        return True

    def _tablet_is_well(self, tablet: int) -> bool:
        states = []
        leaders = readers = 0
        for node in self.cluster.nodes.values():
            host = node.hosts().get(tablet)
            if host is None:
                continue
            replica = host.replica
            leaders += replica.coordinator is not None and replica.coordinator.is_active
            readers += replica.may_read(host.now())
            states.append(replica.state)
        if leaders != 1 or not readers == len(states) == self.plan.knobs.replicas_count:
            return False
        ends = {s.log.end for s in states} | {s.commit for s in states} | {s.applied for s in states}
        return len(ends) == 1 and all(s.is_in_sync and not s.suspect and not s.filling for s in states)

    def shown(self) -> str:
        """The state of every copy, for whoever has to find out why a run failed."""
        lines = []
        for node in self.cluster.nodes.values():
            up = "up" if node.is_up else "down"
            serving = " serving" if node.is_serving else ""
            lines.append(
                f"{node.name} {up}{serving}{' leaving' if node.is_leaving else ''} {_node_shown(node)}"
            )
            for tablet, host in sorted(node.hosts().items()):
                s, c = host.replica.state, host.replica.coordinator
                role = "coordinator" if c is not None else "member" if s.is_in_sync else "learner"
                d = s.descriptor
                members = sorted(m.node for m in d.in_sync) if d is not None else []
                answers = "answers" if host.replica.may_read(host.now()) else "answers nothing"
                lines.append(
                    f"  {tablet:x} {role} epoch {s.promised} end {s.log.end} commit {s.commit} applied {s.applied}"
                    f"{' suspect' if s.suspect else ''}{' filling' if s.filling else ''} {s.stopped_reason or ''}"
                    f" {answers}, sees {d.coordinator if d else None} of {d.epoch if d else 0} in sync {members}"
                )
        return "\n".join(lines)

    # ---------------------------------------------------------------------------------- the end

    def _check_end(self) -> None:
        if not self.oracle.reads_are_judged:  # leases of the wrong clocks run out before the last reads
            self.world.run_until(self.world.now + 10 * self.plan.knobs.timing.promise)
        process = self.cluster.client_process()
        task = process.start(self._read_final(process))
        self._run_until(task.done, WELL_S, "the last reads are answered")
        task.result()
        # Both at one moment: a tablet's clock may append an entry while versions are waited for.
        self._run_until(
            lambda: self.is_well() and self._is_collected(),
            WELL_S,
            "everything stays in sync, and versions that nobody can read any more are removed",
        )
        self.history.close(self.world.now)
        history = self.history if self.oracle.reads_are_judged else _without_reads(self.history)
        tables = self._standing()
        problems = self._problems_of_expiry(history, tables)
        expiring = {
            (table.name, key): sorted(times)
            for table in tables
            if table.options.ttl is not None
            for key, (times, _) in self.oracle.expiries(table).items()
        }
        problems += oracles.check_history(history, expiring=expiring)
        problems += oracles.check_standing(history, [table.name for table in tables])
        rows = self.oracle.committed_rows(tables)
        own = [TABLE, *(TABLE + kind.own_table for kind in OPERATIONS.values())]
        problems += cluster_oracle.check_reads_committed(
            history, rows, [t.name for t in tables if t.name in own]
        )
        problems += check_operations(history, rows)
        problems += self._problems_of_versions(history, tables, rows)
        for tablet in self._tablets():
            holders = {
                n.name: n.engine
                for n in self.cluster.nodes.values()
                if tablet in n.hosts() and n.engine is not None and not self.nemesis.damage.is_marked(n)
            }  # a flipped bit that nobody has read yet is nobody's fault
            problems += cluster_oracle.compare_engines(holders, [tablet], self._retention(tablet))
        if problems:
            raise AssertionError("\n".join(problems))
        self.trace.note(f"history {self.history.digest()}")

    def _standing(self) -> list[TableDefinition]:
        node = next(iter(self.cluster.nodes.values())).node
        assert node is not None
        return [table for _, table in sorted(node.catalogue.tables.items())]

    def _problems_of_expiry(self, history: History, tables: list[TableDefinition]) -> list[str]:
        found: list[str] = []
        ahead_ms = {node.name: node.wall_ahead_ms_max for node in self.cluster.nodes.values()}
        for table in tables:
            if table.options.ttl is not None:
                expiries = self.oracle.expiries(table)
                if self.oracle.reads_are_judged:
                    found += version_oracles.check_clocks(expiries, ahead_ms, self.plan.knobs.min_in_sync)
                    found += version_oracles.check_expiry(history, table.name, expiries)
        return found

    def _problems_of_versions(
        self, history: History, tables: list[TableDefinition], rows: cluster_oracle.CommittedRows
    ) -> list[str]:
        found: list[str] = []
        committed = Committed(rows)
        grace_ms = self.plan.knobs.limits.tombstone_keep_ms
        for table in tables:
            if table.options.has_history:
                clocks = self.oracle.clocks(table)
                judge = version_oracles.VersionsJudge(history, committed, table.options, grace_ms, clocks)
                found += judge.reports(table.name, are_reads_judged=self.oracle.reads_are_judged)
        cells = self.oracle.committed_cells(tables)
        return found + version_oracles.check_cells(history, cells, Cells.options.max_versions)

    def _retention(self, tablet: int) -> Retention | None:
        hosts = (node.hosts().get(tablet) for node in self.cluster.nodes.values())
        return next((host.replica.state.retention for host in hosts if host is not None), None)

    async def _read_final(self, process: Process) -> None:
        async with self.cluster.connect(process, 20.0) as store:
            context = Context("final", store, self.history, process.rng, lambda: self.world.now)
            if any(op.table == TABLE for op in self.history.ops):
                await read_final(context, TABLE)
            for table in sorted({op.table for op in self.history.ops if op.kind == INSERT}):
                await read_scans(context, table)
            await self._read_versions(context)
            bank = self._operations.get("transfers")
            if isinstance(bank, Bank):
                await bank.check_end(store)

    async def _read_versions(self, context: Context) -> None:
        """All that is kept of the rows whose versions the clients read."""
        keys = {
            (op.table, op.key) for op in self.history.ops if op.workload == "versions" and op.key is not None
        }
        for table, key in sorted(keys):
            await FullRecorder(context, "final", table, random.Random(0), timeout_s=WELL_S).versions(
                key, 100, None
            )

    def _faults(self) -> Counter[str]:
        faults = Counter(self.trace.faults)
        faults["table created"] = sum(op.kind == CREATE and op.outcome == OK for op in self.history.ops)
        faults["table dropped"] = sum(op.kind == DROP and op.outcome == OK for op in self.history.ops)
        for node in self.cluster.nodes.values():
            for what, count in node.disk.seen.items():
                faults[f"disk: {what}"] += count
        for what, count in self.cluster.service.seen.items():
            faults[f"coordination: {what}"] += count
        return faults
