"""The tree of errors, named for what the receiver should do.

StoopError
├── UserError            a person must mend something; one clear line, exit 2, never a traceback
│   ├── ConfigError      stoop.yaml, the environment or a flag
│   ├── RulesError       rules files: carries every problem found, not only the first
│   └── StartRefused     the world is not as it must be (socket in use, no token, wrong namespace)
├── AlertError           the sender's bytes are not an alert: answer 400 or count, then go on
├── TargetError          what the alert names can't be acted on
│   ├── TargetGone       it does not exist any more: the act is `skipped`
│   └── TargetRefused    what it is can't be proven, or it is protected: the act is `refused`
├── ActFailed            the act was tried and did not work: the act is `failed`
└── JournalError         the journal can't be read or written: acts go on, said loudly
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class StoopError(Exception):
    """Every error that Stoop raises on purpose."""


class UserError(StoopError):
    """A person must mend something: `what` was wrong, `where` it is, what to do (`hint`).

    `warnings`: what is odd besides; a misspelt key is often the reason of what is wrong.
    """

    warnings: Sequence[object] = ()

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what = what
        self.where = where
        self.hint = hint
        super().__init__(self.__str__())

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        todo = f" ({self.hint})" if self.hint else ""
        return f"{place}{self.what}{todo}"


class ConfigError(UserError):
    """A setting is wrong: `where` names the file and key, or the environment variable."""


class StartRefused(UserError):
    """The program must not start as things are."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a rules file.

    `code` is a stable word (`priority`, `param-type`, …); `detail` what it speaks of (a key, a parameter, the text).
    `line` and `column` count from 1; 0 means that no place is known.
    """

    code: str
    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    rule: str = ""
    action: str = ""
    detail: str = ""
    hint: str = ""
    warning: bool = False

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part)
        whom = " ".join(f"{kind} {name!r}:" for kind, name in (("rule", self.rule), ("action", self.action)) if name)
        todo = f" ({self.hint})" if self.hint else ""
        return " ".join(part for part in (f"{place}:" if place else "", whom, f"{self.message}{todo}") if part)


class RulesError(UserError):
    """The rules can't be used; `problems` lists everything that was found, in order."""

    warnings: Sequence[Problem] = ()

    def __init__(self, problems: Sequence[Problem], warnings: Sequence[Problem] = ()) -> None:
        self.problems = tuple(problems)
        self.warnings = tuple(warnings)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class AlertError(StoopError):
    """The bytes are not an alert. `reason` is for a person, `kind` a closed set of words for a metric's label."""

    def __init__(self, reason: str, kind: str = "malformed") -> None:
        self.reason = reason
        self.kind = kind
        super().__init__(reason)


class TargetError(StoopError):
    """What the alert names can't be acted on."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class TargetGone(TargetError):
    """It does not exist any more."""


class TargetRefused(TargetError):
    """It is protected, or what it is can't be proven."""


class ActFailed(StoopError):
    """The act was tried and did not work."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class JournalError(StoopError):
    """The journal can't be read or written."""
