"""What `stoop falco-config` prints is YAML that Falco takes, and names where this agent listens."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from stoop.cli.falco import APPENDED_FIELDS, Places, Way, falco_config

OUTPUTS = {
    Way.UNIX_HTTP: "http_output",
    Way.PROGRAM: "program_output",
    Way.HTTP: "http_output",
    Way.FILE: "file_output",
}


@pytest.mark.parametrize("way", list(Way))
def test_each_way_is_yaml_with_its_output_on(stoop: Any, way: Way) -> None:
    ran = stoop("falco-config", "--way", way.value)
    assert (ran.code, ran.err) == (0, "")
    settings = yaml.safe_load(ran.out)
    assert settings["json_output"] is True
    assert settings[OUTPUTS[way]]["enabled"] is True
    assert sum(name.endswith("_output") for name in settings) == 3  # json_output, append_output and this one


def test_the_fields_that_tell_which_process_is_meant(stoop: Any) -> None:
    suggested, appended = yaml.safe_load(stoop("falco-config").out)["append_output"]
    assert suggested == {"suggested_output": True}
    # Without the match Falco refuses the rules of other sources, which have no proc.pid.
    assert appended["match"] == {"source": "syscall"}
    assert tuple(appended["extra_fields"]) == APPENDED_FIELDS
    assert {"proc.pid", "proc.vpid", "proc.ppid", "proc.pid.ts", "proc.exe_ino", "container.full_id"} < set(
        APPENDED_FIELDS
    )


def test_all_ways_are_one_document_with_one_alive(stoop: Any) -> None:
    text = stoop("falco-config").out
    assert [line.split()[2] for line in text.splitlines() if line.startswith("# ---- ")] == [f"{way}:" for way in Way]
    settings = yaml.safe_load(text)
    assert settings["http_output"]["url"] == "http://stoop/"
    assert "program_output" not in settings
    assert "file_output" not in settings


@pytest.mark.parametrize("way", list(Way)[1:])
def test_what_is_commented_out_is_right_too(way: Way) -> None:
    places = Places("/run/stoop/falco.sock", "127.0.0.1", 2803, "/var/log/falco/events.json")
    commented = falco_config((Way.UNIX_HTTP, way), places).split(f"# ---- {way}:")[1]
    alone = falco_config((way,), places).split(f"# ---- {way}:")[1]
    lines = [line for line in commented.splitlines()[1:] if re.match(r"# ( |\w+:$)", line)]
    wanted = yaml.safe_load(alone.partition("\n")[2])
    assert yaml.safe_load("\n".join(line[2:] for line in lines)) == wanted


def test_it_names_this_agents_places(stoop: Any, write: Callable[..., str]) -> None:
    config = write(
        "stoop.yaml",
        "intake:\n"
        "  unix: {path: /run/with space/falco.sock}\n"
        '  http: {address: "::1", port: 2999, token_file: /t}\n'
        "  file: {path: /logs/falco.json}\n",
    )
    unix = stoop("falco-config", "-c", config, "--way", "unix-http").out
    assert "http_proxy=socks5h://localhost/run/with%20space/falco.sock\n" in unix
    program = yaml.safe_load(stoop("falco-config", "-c", config, "--way", "program").out)["program_output"]["program"]
    assert "/run/with space/falco.sock" in shlex.split(program)
    http = stoop("falco-config", "-c", config, "--way", "http").out
    assert yaml.safe_load(http)["http_output"]["url"] == "http://falco:${STOOP_TOKEN}@[::1]:2999/"
    assert '{http: {address: "::1", port: 2999, token_file: /etc/stoop/token}}' in http
    file = yaml.safe_load(stoop("falco-config", "-c", config, "--way", "file").out)
    assert file["file_output"]["filename"] == "/logs/falco.json"


def test_the_stoop_yaml_that_it_names_can_be_loaded(stoop: Any, write: Callable[..., str]) -> None:
    for line in re.findall(r"# stoop.yaml needs:  (.*)", stoop("falco-config").out):
        assert stoop("config", "print", "-c", write("stoop.yaml", line + "\n")).code == 0


class TestHeartbeatRule:
    def rule(self, text: str) -> Any:
        (rule,) = yaml.safe_load(text)
        return rule

    def test_it_is_one_rule_that_brings_what_the_agent_looks_at(self, stoop: Any) -> None:
        ran = stoop("falco-config", "--heartbeat")
        assert (ran.code, ran.err) == (0, "")
        rule = self.rule(ran.out)
        assert (rule["rule"], rule["priority"], rule["source"]) == ("Stoop heartbeat", "DEBUG", "syscall")
        assert {"%fd.name", "%proc.pid"} <= set(re.findall(r"%[\w.]+", rule["output"]))
        assert 'fd.name startswith "/run/stoop/heartbeat/"' in rule["condition"]
        assert rule["tags"] == ["stoop", "heartbeat"]

    def test_it_names_this_agents_beacon_and_rule(self, stoop: Any, write: Callable[..., str]) -> None:
        config = write("stoop.yaml", "heartbeat: {path: /run/with space/beat, rule: 'My \"own\" beat'}\n")
        rule = self.rule(stoop("falco-config", "--heartbeat", "-c", config).out)
        assert rule["rule"] == 'My "own" beat'
        assert 'fd.name startswith "/run/with space/beat/"' in rule["condition"]

    def test_the_stoop_yaml_that_it_names_turns_it_on(self, stoop: Any, write: Callable[..., str]) -> None:
        (line,) = re.findall(r"stoop.yaml needs:  (.*)", stoop("falco-config", "--heartbeat").out)
        shown = stoop("config", "print", "-c", write("stoop.yaml", line + "\n"))
        assert (shown.code, "heartbeat.interval" in shown.out) == (0, True)

    def test_the_other_settings_point_to_it(self, stoop: Any) -> None:
        assert "stoop falco-config --heartbeat" in stoop("falco-config").out
