"""The table of commands, and the one border where errors become one line and an exit code."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import typer

from stoop.cli import FINE, USAGE, catalogue, evidence, held, live, replay_command, rules, running, sending, settings
from stoop.cli.explain import explain
from stoop.cli.history import history
from stoop.cli.screen import err, plain
from stoop.errors import AlertError, RulesError, StoopError, UserError


def _typer(help_text: str) -> typer.Typer:
    return typer.Typer(
        help=help_text,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"max_content_width": 120, "help_option_names": ["-h", "--help"]},
    )


def _group(parent: typer.Typer, name: str, help_text: str, commands: dict[str, Callable[..., int]]) -> None:
    group = _typer(help_text)
    # A callback keeps a group with one command a group.
    group.callback()(lambda: None)
    for command, function in commands.items():
        group.command(command)(function)
    parent.add_typer(group, name=name)


def build() -> typer.Typer:
    """All commands of `stoop`."""
    app = _typer("Stoop: a node-local response engine for Falco. Exit codes: 0 fine, 1 findings, 2 usage.")
    app.command("run")(running.run)
    app.command("send")(sending.send)
    app.command("explain")(explain)
    app.command("replay")(replay_command.replay)
    _group(app, "rules", "Check or print rules files.", {"check": rules.check, "print": rules.print_rules})
    for name, function in (
        ("actions", catalogue.list_actions),
        ("actionners", catalogue.list_actions),
        ("outputs", catalogue.list_outputs),
        ("notifiers", catalogue.list_notifiers),
    ):
        said = f"What rules may name as {name}." if name != "actionners" else "The same as `actions` (Talon's word)."
        _group(app, name, said, {"list": function})
    app.command("history")(history)
    kept: dict[str, Callable[..., int]] = {
        "list": evidence.list_bundles,
        "show": evidence.show,
        "verify": evidence.verify,
        "extract": evidence.extract_parts,
    }
    _group(app, "evidence", "What was kept of targets before it was lost.", kept)
    app.command("status")(live.status)
    app.command("mode")(live.mode)
    app.command("arm")(live.arm)
    app.command("active")(held.active)
    app.command("undo")(held.undo)
    app.command("extend")(held.extend)
    _group(app, "config", "The agent's configuration.", {"print": settings.print_config})
    app.command("falco-config")(settings.print_falco_config)
    app.command("version")(settings.version)
    return app


def run_command(argv: list[str]) -> int:
    """Run the command that these arguments name; errors become lines on stderr. Returns the exit code."""
    app = build()
    groups = {str(group.name) for group in app.registered_groups}
    if not argv or (len(argv) == 1 and argv[0] in groups):
        argv = [*argv, "--help"]
    command = typer.main.get_command(app)
    try:
        # Not `command.main`: it answers a closed pipe and Ctrl-C in ways of its own.
        with command.make_context("stoop", argv) as context:
            code = command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except typer.TyperException as error:
        words = "".join(f" {word}" for word in _command_words(app, argv))
        # Typer checks values with pydantic, whose preamble says nothing to a person.
        return _complain(f"{error.format_message().replace('Value error, ', '')} (see `stoop{words} --help`)")
    except typer.Abort:
        return _complain("aborted")
    except RulesError as error:
        for problem in error.problems:
            _complain(str(problem))
        return USAGE
    except AlertError as error:
        return _complain(f"not an alert: {error.reason}")
    except StoopError as error:
        warnings = error.warnings if isinstance(error, UserError) else ()
        for line in (*(f"warning: {warning}" for warning in warnings), *str(error).splitlines()):
            _complain(line)
        return USAGE
    return code if isinstance(code, int) else FINE


def _command_words(app: typer.Typer, argv: Sequence[str]) -> list[str]:
    """The words at the beginning that name a command."""
    words: list[str] = []
    here: typer.Typer | None = app
    for word in argv:
        groups = {str(group.name): group.typer_instance for group in here.registered_groups} if here else {}
        commands = {str(command.name) for command in here.registered_commands} if here else set()
        if word not in groups and word not in commands:
            break
        words.append(word)
        here = groups.get(word)
    return words


def _complain(message: str) -> int:
    err().print(f"stoop: {plain(' '.join(message.split()))}", style=None)
    return USAGE
