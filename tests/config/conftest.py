"""What the tests of the configuration share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from stoop import config
from stoop.config import Config, ConfigErrors


class Loading:
    """`load` with a directory for its file, root's defaults and an empty environment unless said otherwise."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "stoop.yaml"

    def __call__(
        self, text: str | bytes | None = None, environ: Mapping[str, str] | None = None, *, is_root: bool = True
    ) -> Config:
        if text is not None:
            self.path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path = None if text is None else str(self.path)
        return config.load(path, environ or {}, is_root=is_root, hostname="host-1", uid=1000)

    def problems(self, text: str | bytes, environ: Mapping[str, str] | None = None) -> list[str]:
        with pytest.raises(ConfigErrors) as caught:
            self(text, environ)
        return [str(problem).removeprefix(f"{self.path}:") for problem in caught.value.problems]

    def warnings(self, text: str, environ: Mapping[str, str] | None = None) -> list[str]:
        return [warning.removeprefix(f"{self.path}:") for warning in self(text, environ).warnings]


@pytest.fixture
def load(tmp_path: Path) -> Loading:
    return Loading(tmp_path)
