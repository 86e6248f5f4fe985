"""Talon's keys, and what `stoop config print` shows of them and of ours."""

from __future__ import annotations

from stoop import config
from stoop.config import HttpIntake, LogFormat
from tests.config.conftest import Loading

TALON_FILE = """\
listen_address: "0.0.0.0"
listen_port: 2803
rules_files:
  - /etc/falco-talon/rules.yaml
kubeconfig: ""
log_format: color
watch_rules: true
print_all_events: true
default_notifiers:
  - k8sevents
deduplication:
  leader_election: true
  time_window_seconds: 7
otel:
  traces_enabled: false
aws:
  region: eu-west-1
  secret_key: AKIASECRET
notifiers:
  slack:
    webhook_url: https://hooks.example.com/T000/SECRET
    icon: https://example.com/icon.png
"""


class TestTalon:
    def test_its_file_as_it_is(self, load: Loading) -> None:
        made = load(TALON_FILE)
        assert made.rules_files == ("/etc/falco-talon/rules.yaml",)
        assert made.log_format is LogFormat.TEXT
        assert made.print_all_events
        assert made.guard.dedup_window_ns == 7 * 10**9
        assert made.intake.http is None
        told = [warning.removeprefix(f"{load.path}:") for warning in made.warnings]
        assert [warning.split(":", 1)[0] for warning in told] == ["1", "9", "12", "15", "21", "18"]
        assert "write `intake: {http: {address: 127.0.0.1, port: 2803, token_file: FILE}}`" in told[0]
        assert all("no meaning" in warning for warning in told[1:-1])
        assert "aws.secret_key: it means nothing without aws.access_key" in told[-1]

    def test_listen_keys_speak_for_an_http_intake_that_is_on(self, load: Loading) -> None:
        text = 'listen_address: 10.0.0.1\nlisten_port: "99"\nintake: {http: {token_file: /t}}\n'
        made = load(text)
        assert made.intake.http == HttpIntake(address="10.0.0.1", port=99, token_file="/t")
        assert made.warnings == ()
        made = load(text, {"STOOP_INTAKE_HTTP_PORT": "7", "LISTEN_PORT": "8"})
        assert made.intake.http == HttpIntake(address="10.0.0.1", port=7, token_file="/t")

    def test_its_environment(self, load: Loading) -> None:
        made = load(
            environ={
                "LOG_FORMAT": "JSON",
                "WATCH_RULES": "false",
                "PRINT_ALL_EVENTS": "true",
                "DEDUPLICATION_TIME_WINDOW_SECONDS": "0",
                "RULES_FILES": "/a, /b",
                "KUBECONFIG": "/home/me/.kube/config",
                "OTEL_TRACES_ENABLED": "true",
            }
        )
        assert made.log_format is LogFormat.JSON
        assert not made.watch_rules
        assert made.print_all_events
        assert made.guard.dedup_window_ns == 0
        assert made.rules_files == ("/a", "/b")
        assert made.warnings == ()
        (warning,) = load(environ={"LISTEN_PORT": "2803"}).warnings
        assert warning.startswith("environment: LISTEN_PORT: Talon's listen_address and listen_port open no port here")

    def test_a_log_format_that_talon_takes_for_json(self, load: Loading) -> None:
        made = load("log_format: fancy")
        assert made.log_format is LogFormat.JSON
        assert made.warnings == (
            f"{load.path}:1: log_format: log format 'fancy' is not known; json is used, as Talon does",
        )

    def test_our_key_wins(self, load: Loading) -> None:
        made = load("deduplication: {time_window_seconds: 9}\nguard: {dedup_window: 1m}")
        assert made.guard.dedup_window_ns == 60 * 10**9
        assert load.problems("deduplication: {time_window_seconds: 5s}") == [
            "1: deduplication.time_window_seconds: '5s' is not a whole number from 0 to 1000000000"
        ]


class TestPrintable:
    def test_every_setting_once_with_its_origin(self, load: Loading) -> None:
        rows = config.printable(load("guard: {max_alert_age: 90s, protected_namespaces: [a, b]}\nmode: observe"))
        keys = [key for key, _, _ in rows]
        assert len(keys) == len(set(keys))
        assert ("mode", "observe", f"{load.path}:2") in rows
        assert ("guard.max_alert_age", "90s", f"{load.path}:1") in rows
        assert ("guard.protected_namespaces", "[a, b]", f"{load.path}:1") in rows
        assert ("intake.unix.mode", "0600", "default") in rows
        assert ("intake.http", "null", "default") in rows
        assert ("journal.max_bytes", "256MiB", "default") in rows
        assert not any(key.startswith("intake.http.") for key in keys)

    def test_a_section_turned_off_says_where(self, load: Loading) -> None:
        assert ("metrics", "null", f"{load.path}:1") in config.printable(load("metrics: null"))

    def test_what_is_read_back_is_the_same(self, load: Loading) -> None:
        """The values shown are those one could write."""
        made = load("guard: {dedup_window: 1h30m, max_alert_age: 0}\njournal: {max_bytes: 1000}")
        text = "".join(
            f"{key}: {value}\n" for key, value, _ in config.printable(made) if "." not in key and value != "null"
        )
        again = load(text)
        assert (again.mode, again.rules_files, again.log_format) == (made.mode, made.rules_files, made.log_format)
        values = {key: value for key, value, _ in config.printable(made)}
        assert (values["guard.dedup_window"], values["guard.max_alert_age"]) == ("90m", "0")
        assert values["journal.max_bytes"] == "1000"

    def test_secrets_are_masked_and_ignored_ones_shown(self, load: Loading) -> None:
        rows = config.printable(load(TALON_FILE))
        assert ("aws.region", "eu-west-1", f"{load.path}:17") in rows
        assert ("aws.secret_key", "***", f"{load.path}:18") in rows
        assert "SECRET" not in repr(rows)
        assert "SECRET" not in repr(load(TALON_FILE))
