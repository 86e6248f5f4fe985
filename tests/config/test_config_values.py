"""Every kind of value that a setting can have."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoop.config_values import KINDS, choice, format_mode, parse_address, parse_bool, parse_mode, whole_number
from stoop.units import format_duration, format_size, parse_duration, parse_size


class TestValues:
    @pytest.mark.parametrize(
        ("text", "nanoseconds"),
        [
            *(
                ("60s", 60 * 10**9),
                ("1h30m", 5400 * 10**9),
                ("30D", 30 * 86400 * 10**9),
                ("0", 0),
                ("500ms", 5 * 10**8),
            ),
            *(("1.5s", 15 * 10**8), (" 2m ", 120 * 10**9), ("10us", 10**4), ("10µs", 10**4), ("7ns", 7), ("0s", 0)),
        ],
    )
    def test_durations(self, text: str, nanoseconds: int) -> None:
        assert parse_duration(text) == nanoseconds

    @pytest.mark.parametrize(
        "text", ["", "5", "s", "-5s", "5 s", "5x", "1e3s", "9" * 50 + "s", "36501d", "٣s5", "1s 2s"]
    )
    def test_no_durations(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"is not a duration|is too long"):
            parse_duration(text)

    @given(st.integers(0, 10**18))
    def test_durations_shown_are_durations(self, nanoseconds: int) -> None:
        assert parse_duration(format_duration(nanoseconds)) == nanoseconds

    @pytest.mark.parametrize(
        ("text", "size"),
        [("256MiB", 2**28), ("1Gi", 2**30), ("10MB", 10**7), ("10 mb", 10**7), ("5k", 5000), ("7", 7), ("0.5KiB", 512)],
    )
    def test_sizes(self, text: str, size: int) -> None:
        assert parse_size(text) == size

    @pytest.mark.parametrize("text", ["", "MiB", "-1", "1XB", "1 2", "2000TiB", "9" * 30])
    def test_no_sizes(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"is not a size|is too large"):
            parse_size(text)

    @given(st.integers(0, 2**50))
    def test_sizes_shown_are_sizes(self, size: int) -> None:
        assert parse_size(format_size(size)) == size

    @pytest.mark.parametrize(("text", "mode"), [("0600", 0o600), ("660", 0o660), ("0o777", 0o777), ("0", 0)])
    def test_file_modes(self, text: str, mode: int) -> None:
        assert parse_mode(text) == mode
        assert parse_mode(format_mode(mode)) == mode

    @pytest.mark.parametrize("text", ["", "0800", "01000", "rw", "-600", "384x"])
    def test_no_file_modes(self, text: str) -> None:
        with pytest.raises(ValueError, match="is not a file mode"):
            parse_mode(text)

    def test_booleans(self) -> None:
        assert [parse_bool(text) for text in ("true", "YES", "on", "1")] == [True] * 4
        assert [parse_bool(text) for text in ("False", "no", "off", "0")] == [False] * 4
        with pytest.raises(ValueError, match="neither true nor false"):
            parse_bool("maybe")

    @pytest.mark.parametrize(
        ("text", "address"),
        [
            ("127.0.0.1", "127.0.0.1"),
            ("localhost", "127.0.0.1"),
            ("[::1]", "::1"),
            ("::", "::"),
            ("0.0.0.0", "0.0.0.0"),
        ],
    )
    def test_addresses(self, text: str, address: str) -> None:
        assert parse_address(text) == address

    @pytest.mark.parametrize("text", ["", "*", "example.com", "1.2.3", "1.2.3.4:80"])
    def test_no_addresses(self, text: str) -> None:
        with pytest.raises(ValueError, match="is not an IP address"):
            parse_address(text)

    def test_numbers_and_words(self) -> None:
        parse = whole_number(-1, 10)
        assert [parse(text) for text in ("-1", "+3", " 10 ", "0_0")] == [-1, 3, 10, 0]
        for text in ("11", "-2", "1.0", "0x1", "", "9" * 10_000, "١"):
            with pytest.raises(ValueError, match="is not a whole number from -1 to 10"):
                parse(text)
        assert choice("a", "b")(" B ") == "b"

    @given(st.sampled_from(sorted(set(KINDS) - {"secret"})), st.text())
    def test_any_text_is_a_value_or_a_reason(self, kind: str, text: str) -> None:
        with contextlib.suppress(ValueError):
            value = KINDS[kind].parse(text)
            assert KINDS[kind].parse(KINDS[kind].show(value)) == value
