"""The configuration: sources and their order, every problem at once, the reference."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoop import config, config_load, config_resolve
from stoop.config import Config, ConfigErrors, FileIntake, PidNamespace, UnixIntake
from stoop.errors import ConfigError
from stoop.spec import (
    Mode,
)
from tests.config.conftest import Loading


class TestDefaults:
    def test_as_root(self, load: Loading) -> None:
        made = load()
        assert made.mode is Mode.ENFORCE
        assert made.node_name == "host-1"
        assert made.state_dir == "/var/lib/stoop"
        assert made.rules_files == ("/etc/stoop/rules.yaml",)
        assert made.control.path == "/run/stoop/control.sock"
        assert made.intake.unix == UnixIntake(path="/run/stoop/falco.sock", mode=0o600, allow_uids=(0,))
        assert (made.intake.http, made.intake.file, made.intake.stdin) == (None, None, False)
        assert made.metrics is not None
        assert (made.metrics.address, made.metrics.port) == ("127.0.0.1", 2804)
        assert made.guard.protected_namespaces == ("kube-system",)
        assert {"kubelet", "containerd-shim-runc-v2"[:15], "falco"} <= set(made.guard.protected_executables)
        assert (made.guard.max_alert_age_ns, made.guard.max_targets) == (60 * 10**9, 5)
        assert made.guard.pid_namespace is PidNamespace.AUTO
        assert made.warnings == ()
        assert set(made.origins.values()) == {"default"}

    @pytest.mark.parametrize(
        ("environ", "expected"),
        [
            ({"XDG_STATE_HOME": "/x", "HOME": "/h"}, "/x/stoop"),
            ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/stoop"),
            ({"HOME": "/h"}, "/h/.local/state/stoop"),
        ],
    )
    def test_not_as_root_all_is_in_the_home(self, load: Loading, environ: dict[str, str], expected: str) -> None:
        made = load(environ=environ, is_root=False)
        assert made.state_dir == expected
        assert made.control.path == f"{expected}/control.sock"
        assert made.intake.unix == UnixIntake(path=f"{expected}/falco.sock", allow_uids=(0, 1000))

    def test_without_a_home_it_says_what_to_set(self, load: Loading) -> None:
        with pytest.raises(ConfigErrors, match=r"state_dir: there is no home directory.*set state_dir"):
            load(is_root=False)

    def test_sockets_follow_a_state_dir_that_was_set(self, load: Loading) -> None:
        made = load("state_dir: /s\ncontrol: {path: /c}\n")
        assert made.control.path == "/c"
        assert made.intake.unix is not None
        assert made.intake.unix.path == "/s/falco.sock"

    def test_the_node_s_name(self, load: Loading) -> None:
        assert load(environ={"NODE_NAME": "from-env"}).node_name == "from-env"
        assert load("node_name: from-file", {"NODE_NAME": "from-env"}).node_name == "from-file"
        assert load("node_name: from-file", {"STOOP_NODE_NAME": "from-stoop"}).node_name == "from-stoop"

    @pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null\n", "guard:\nintake: null\n"])
    def test_an_empty_file_changes_nothing(self, load: Loading, text: str) -> None:
        made = load(text)
        assert made.guard == load().guard
        assert made.intake == load().intake


class TestSources:
    def test_flag_beats_environment_beats_file_beats_default(self, load: Loading) -> None:
        text = "guard: {max_targets: 1, max_targets_total: 1, dedup_window: 1s}\nrules_files: [a]\n"
        load.path.write_text(text)
        made = config.load(
            str(load.path),
            {"STOOP_GUARD_MAX_TARGETS": "2", "RULES_FILES": "b,c", "STOOP_GUARD_DEDUP_WINDOW": ""},
            is_root=True,
            hostname="h",
            overrides={"rules_files": ("d", "e,f"), "mode": "observe"},
        )
        assert (made.guard.max_targets, made.guard.max_targets_total) == (2, 1)
        assert made.guard.dedup_window_ns == 10**9
        assert made.rules_files == ("d", "e,f")
        assert made.mode is Mode.OBSERVE
        assert made.origins["guard.max_targets"] == "env STOOP_GUARD_MAX_TARGETS"
        assert made.origins["guard.max_targets_total"] == f"{load.path}:1"
        assert made.origins["rules_files"] == "flag"
        assert made.origins["guard.act_deadline"] == "default"

    def test_ours_beats_talon_s_name_whatever_comes_first(self, load: Loading) -> None:
        both = {"RULES_FILES": "talon", "STOOP_RULES_FILES": "ours"}
        assert load(environ=both).rules_files == ("ours",)
        assert load(environ=dict(reversed(both.items()))).rules_files == ("ours",)

    def test_every_setting_has_a_name_of_its_own_in_the_environment(self) -> None:
        settings, sections = config_resolve.table_of(Config)
        names = [config_load.env_name(key) for key in (*settings, *sections)]
        assert len(names) == len(set(names))
        assert "STOOP_GUARD_MAX_TARGETS" in names

    def test_keys_count_in_any_case(self, load: Loading) -> None:
        assert load("Guard: {MAX_Targets: 9}").guard.max_targets == 9

    def test_a_file_that_is_not_there(self, load: Loading) -> None:
        with pytest.raises(ConfigError, match=r"nowhere\.yaml: can't be read: No such file.*-c"):
            config.load(str(load.path.with_name("nowhere.yaml")), {}, is_root=True, hostname="h")

    def test_a_file_that_is_no_configuration_by_size(self, load: Loading) -> None:
        with pytest.raises(ConfigError, match="more than"):
            load(b"#" * (config_load.MAX_FILE + 1))

    def test_merge_keys_and_aliases(self, load: Loading) -> None:
        made = load("guard:\n  <<: &base {max_targets: 3, max_targets_total: 4}\n  max_targets: 5\njournal: {<<: []}\n")
        assert (made.guard.max_targets, made.guard.max_targets_total) == (5, 4)
        assert load.problems("guard: {<<: text}") == ["1: guard.<<: `<<` takes a mapping"]


class TestSwitches:
    def test_null_turns_an_intake_off(self, load: Loading) -> None:
        made = load("intake: {unix: null, file: {path: /f}}\nmetrics: ~\n")
        assert made.intake.unix is None
        assert made.metrics is None
        assert made.intake.file == FileIntake(path="/f")

    @pytest.mark.parametrize("word", ["null", "off", "~", "False"])
    def test_so_do_words_in_the_environment(self, load: Loading, word: str) -> None:
        made = load("metrics: {port: 1}", {"STOOP_METRICS": word, "STOOP_INTAKE_UNIX": word, "STOOP_INTAKE_STDIN": "1"})
        assert (made.metrics, made.intake.unix) == (None, None)
        assert made.intake.stdin

    def test_a_variable_inside_turns_a_section_on(self, load: Loading) -> None:
        assert load(environ={"STOOP_INTAKE_FILE_PATH": "/f"}).intake.file == FileIntake(path="/f")
        made = load("intake: {http: {insecure: true}}", {"STOOP_INTAKE_HTTP": "off"})
        assert made.intake.http is None
        made = load("metrics: null", {"STOOP_METRICS": "on"})
        assert made.metrics == config.Metrics()

    def test_a_word_that_is_neither(self, load: Loading) -> None:
        assert load.problems("", {"STOOP_METRICS": "perhaps"}) == [
            "environment: STOOP_METRICS: 'perhaps' is neither true nor false: write one of the two"
        ]

    def test_all_off_is_worth_a_warning(self, load: Loading) -> None:
        assert load.warnings("intake: {unix: null}") == ["intake: every intake is off: no alert can reach this agent"]


class TestProblems:
    def test_all_at_once_with_their_lines(self, load: Loading) -> None:
        problems = load.problems(
            "mode: kill\n"
            "guard:\n"
            "  max_targets: many\n"
            "  max_alert_age: 5\n"
            "  protected_namespaces: {a: b}\n"
            "intake:\n"
            "  unix: {mode: 0999, allow_uids: [root]}\n"
            "  http: {port: 70000}\n"
            "metrics: 2804\n"
            "rules_files: [[a]]\n",
            {"STOOP_JOURNAL_MAX_BYTES": "lots"},
        )
        assert problems == [
            "5: guard.protected_namespaces: a plain value or a list of them belongs here",
            "9: metrics: this is a section and takes a mapping (write `metrics: {address: ...}`)",
            "10: rules_files: a plain value or a list of them belongs here",
            "1: mode: 'kill' is not known: write one of enforce, observe, off",
            '7: intake.unix.mode: \'0999\' is not a file mode: write octal digits in quotes, such as "0600" or "0660"',
            "7: intake.unix.allow_uids: 'root' is not a whole number from 0 to 4294967294",
            "8: intake.http.port: '70000' is not a whole number from 0 to 65535",
            "4: guard.max_alert_age: '5' is not a duration: write a number and a unit, "
            "such as 500ms, 60s, 5m, 1h or 30d",
            "3: guard.max_targets: 'many' is not a whole number from 0 to 1000000",
            "environment: STOOP_JOURNAL_MAX_BYTES: 'lots' is not a size: write bytes, or a number and a unit, "
            "such as 64KiB, 256MiB or 1GiB",
            "8: intake.http: alerts over HTTP need a token "
            "(write token_file: FILE, or insecure: true to take alerts from anyone)",
        ]

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("a: [", "2:1: this is not YAML: did not find expected node content (mend the line, or the one above)"),
            ("a: b: c", "1:5: this is not YAML: mapping values are not allowed in this context"),
            ("- a", "1: the top level must be a mapping (write lines of `key: value`)"),
            ("word", "1: the top level must be a mapping (write lines of `key: value`)"),
            ("[a]: b", "1: a key must be a word"),
            ("mode: off\nMODE: off", "2: mode: given twice, first on line 1"),
            ("mode: [off]", "1: mode: one value belongs here, not a list"),
            ('node_name: "a\\0b"', "1: node_name: it holds a NUL byte"),
            ("intake: {file: {}}", " intake.file.path: which file is to be followed?"),
            ("guard: {act_deadline: 0}", "1: guard.act_deadline: an act needs some time"),
            ("metrics: {address: here}", "1: metrics.address: 'here' is not an IP address: write 127.0.0.1"),
            ("control: {path: /" + "x" * 107 + "}", "1: control.path: the path is longer than 107 bytes"),
            (b"mode: \xff\xfe", "this is not YAML: "),
            (b"a\x84", "invalid leading UTF-8 octet in "),
            ("a: " + "[" * 100_000, "this is not YAML: nested more than 32 levels deep"),
        ],
    )
    def test_one_line_each(self, load: Loading, text: str | bytes, problem: str) -> None:
        (found,) = load.problems(text)
        assert problem.strip() in found
        assert "\n" not in found

    def test_a_long_socket_path_matters_only_where_it_is_used(self, load: Loading) -> None:
        long = "/" + "x" * 107
        assert load(f"intake: {{unix: null, stdin: true}}\nstate_dir: {long}\ncontrol: {{path: /c}}").state_dir == long

    def test_several_are_lines_of_one_error(self, load: Loading) -> None:
        with pytest.raises(ConfigErrors) as caught:
            load("mode: a\nlog_format: [b]\nguard: {max_targets: -1}")
        assert len(str(caught.value).splitlines()) == 3
        assert not caught.value.warnings
        assert isinstance(caught.value, ConfigError)

    def test_what_is_odd_is_told_beside_what_is_wrong(self, load: Loading) -> None:
        with pytest.raises(ConfigErrors) as caught:
            load("mode: a\nmodus: off")
        assert "modus" in str(caught.value.warnings)
        assert "modus" not in str(caught.value)

    @given(st.binary(max_size=200))
    def test_any_bytes_are_a_config_or_an_error(self, tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
        path = tmp_path_factory.mktemp("any") / "stoop.yaml"
        path.write_bytes(data)
        with contextlib.suppress(ConfigError):
            config.load(str(path), {}, is_root=True, hostname="h")


class TestWarnings:
    def test_unknown_keys_with_a_suggestion(self, load: Loading) -> None:
        assert load.warnings('moode: off\nguard: {protected_namespace: [a]}\nxyz: 1\n"\\e[2J": 1') == [
            "1: moode: there is no such setting (did you mean mode?); it is ignored",
            "2: guard.protected_namespace: there is no such setting (did you mean guard.protected_namespaces?); "
            "it is ignored",
            "3: xyz: there is no such setting; it is ignored",
            r"4: '\x1b[2J': there is no such setting; it is ignored",
        ]

    def test_unknown_variables_but_not_those_of_service_links(self, load: Loading) -> None:
        links = {
            "STOOP_CONFIG": "/etc/stoop/stoop.yaml",
            "STOOP_PORT": "tcp://10.0.0.1:2804",
            "STOOP_SERVICE_HOST": "10.0.0.1",
            "STOOP_SERVICE_PORT_METRICS": "2804",
            "STOOP_METRICS_PORT": "tcp://10.0.0.1:2804",
            "STOOP_METRICS_PORT_2804_TCP_ADDR": "10.0.0.1",
            "STOOP_METRICS_SERVICE_PORT": "2804",
        }
        made = load(environ=links)
        assert made.warnings == ()
        assert made.metrics == config.Metrics()
        assert load(environ={"STOOP_GUARD_MAXTARGETS": "1"}).warnings == (
            "environment: STOOP_GUARD_MAXTARGETS: there is no such setting (did you mean STOOP_GUARD_MAX_TARGETS?); "
            "it is ignored",
        )

    def test_insecure_is_said_loudly(self, load: Loading) -> None:
        (warning,) = load.warnings("intake: {http: {insecure: true, address: 0.0.0.0}}")
        assert warning == (
            "1: intake.http.insecure: insecure: whoever reaches 0.0.0.0 port 2803 can have processes killed"
        )


class TestReference:
    def test_it_names_every_setting_and_every_key_of_talon(self) -> None:
        text = config.reference()
        settings, _ = config_resolve.table_of(Config)
        for setting in settings.values():
            assert f"| `{setting.key}` |" in text
            assert setting.env in text
            assert setting.description
        for key in config_resolve.TALON_KEYS:
            assert f"| `{key}` |" in text

    def test_every_row_has_four_cells(self) -> None:
        for line in config.reference().splitlines():
            if line.startswith("| `") and "STOOP_" in line:
                assert line.count(" | ") == 3, line
