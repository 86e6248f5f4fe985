"""The rules in force: files to the helper, finished rules back, one swap when all are there.

The old rules stay until the new ones are whole. Each rule is compiled as it comes (some µs), never all in one stretch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import trio

from stoop.errors import Problem, RulesError
from stoop.metrics import Metrics
from stoop.rules import Builder, Rule, RuleSet
from stoop.rules.model import RuleForm
from stoop.wire import AnyMessage, RuleReady, RulesBegin, RulesEnd, RulesRejected, RulesSource

SPENT_A_TICK = 100
"""Rules let go of in one stretch: some 40 µs."""

Files = tuple[tuple[str, bytes], ...]

_decoder = msgspec.msgpack.Decoder(RuleForm)


@dataclass(frozen=True, slots=True)
class InForce:
    """What is known of the rules that are used now. `rejected` says why newer files are not."""

    count: int = 0
    digest: str = ""
    loaded_ns: int = 0
    rejected: str = ""


class Rulebook:
    """Talks with the helper about rules. `use` swaps them in; `say` logs."""

    def __init__(
        self,
        send: Callable[[AnyMessage], bool],
        use: Callable[[RuleSet], RuleSet],
        say: Callable[..., None],
        metrics: Metrics,
        now_ns: Callable[[], int],
    ) -> None:
        self._send = send
        self._use = use
        self._say = say
        self._metrics = metrics
        self._now_ns = now_ns
        self._generation = 0
        self._asked: RulesSource | None = None
        self._builder: Builder | None = None
        self._digest = ""
        self._announced = 0
        self._spent: list[Rule] = []
        self._first = trio.Event()
        self._problems: tuple[str, ...] = ()
        self._warnings: tuple[str, ...] = ()
        self.in_force = InForce()

    def offer(self, files: Files) -> None:
        """Have these files checked; they are used as soon as that is done."""
        self._generation += 1
        self._asked = RulesSource(self._generation, files)
        if not self._send(self._asked):
            self._say("error", "the helper takes no rules just now: they are asked again when it is started anew")

    def ask_again(self) -> None:
        """A new helper: what the last one did not answer is asked again."""
        if self._asked is not None:
            self._send(self._asked)

    def reject(self, why: str) -> None:
        """Files that are not even offered (gone, cut to nothing): the old rules stay, loudly."""
        self._reject((why,))

    async def first(self) -> None:
        """Wait for the answer to the first offer. Raises RulesError when the files can't be used."""
        await self._first.wait()
        if self._problems and not self.in_force.digest:
            raise RulesError(
                [Problem("rules", line) for line in self._problems],
                [Problem("rules", line, warning=True) for line in self._warnings],
            )

    def take(self, message: AnyMessage) -> bool:
        """A message from the helper; False when it is about something else."""
        if not isinstance(message, RulesBegin | RuleReady | RulesEnd | RulesRejected):
            return False
        if self._asked is None or message.generation != self._generation:
            return True  # nobody asked, or an older question: a newer one is under way
        if isinstance(message, RulesBegin):
            self._builder = Builder()
            self._digest = message.digest
            self._announced = message.count
        elif isinstance(message, RulesRejected):
            self._asked = None
            self._reject(message.problems, message.warnings)
        elif self._builder is not None:
            if isinstance(message, RuleReady):
                self.dispose(1)
                self._add(self._builder, message.rule)
            elif len(self._builder.rules) == self._announced:
                self._swap(self._builder, message.warnings)
            else:
                self._garbled(f"{len(self._builder.rules)} of {self._announced} rules came")
        return True

    def dispose(self, count: int = SPENT_A_TICK) -> None:
        """Let go of some rules that are no longer in force: of a thousand at once the loop would feel it."""
        del self._spent[-count:]

    def _add(self, builder: Builder, rule: msgspec.Raw) -> None:
        try:
            builder.add(_decoder.decode(rule))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._garbled(str(error))

    def _garbled(self, why: str) -> None:
        """The helper said something that is no rule. It is not trusted with more than that: the old rules stay."""
        self._asked = None
        self._reject((f"the helper's answer can't be used ({why}): this is a fault of Stoop, please report it",))

    def _swap(self, builder: Builder, warnings: tuple[str, ...]) -> None:
        rules = builder.finish(self._digest)
        old = self._use(rules)
        self._spent, old.rules = self._spent + old.rules, []
        self._builder = self._asked = None
        self._problems = self._warnings = ()
        self.in_force = InForce(len(rules), self._digest, self._now_ns(), "")
        self._warn(warnings)
        self._say("info", "rules in force", count=len(rules), digest=self._digest)
        self._count("ok")

    def _reject(self, problems: tuple[str, ...], warnings: tuple[str, ...] = ()) -> None:
        self._problems, self._warnings = problems, warnings
        self._builder = None
        old = self.in_force
        self.in_force = InForce(old.count, old.digest, old.loaded_ns, "\n".join(problems))
        if self._first.is_set():
            self._warn(warnings)
            for line in problems:
                self._say("error", "rules rejected: the old ones stay in force", problem=line)
        self._count("rejected")

    def _warn(self, warnings: tuple[str, ...]) -> None:
        for line in warnings:
            self._say("warning", "rules warning", problem=line)

    def _count(self, result: str) -> None:
        if self._first.is_set():
            self._metrics.inc("reloads_total", (result,))
        self._first.set()
        self._metrics.set("rules", (), self.in_force.count)
        self._metrics.set("reload_rejected", (), 1 if self.in_force.rejected else 0)
