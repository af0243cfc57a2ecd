"""Real plugin installs for tests: a package and its metadata in a folder on `sys.path`."""

from __future__ import annotations

import importlib
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PluginInstaller"]


class PluginInstaller:
    """Writes into `folder` what pip would: modules and a `.dist-info` with entry points.

    Discovery then finds the plugin as it finds any other; nothing is replaced.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._modules: set[str] = set()

    def install(
        self,
        name: str,
        source: str | None,
        *,
        module: str | None = None,
        target: str | None = None,
        distribution: str | None = None,
        version: str = "1.0",
    ) -> str:
        """Install one plugin and give the name of its module.

        Args:
            name: the plugin's name, the key of its entry point.
            source: text of its module; None leaves the module out, as after a half removal.
            module: import name, `zoo_test_NAME` by default.
            target: what the entry point names, the module by default.
            distribution: `zooplatform-NAME` by default.
            version: of the distribution.
        """
        module = module or f"zoo_test_{name.replace('-', '_')}"
        distribution = distribution or f"zooplatform-{name}"
        if source is not None:
            path = self.folder / f"{module}.py"
            path.write_text(textwrap.dedent(source), encoding="utf-8")
            self._modules.add(module)
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n", encoding="utf-8"
        )
        points = info / "entry_points.txt"
        before = points.read_text(encoding="utf-8") if points.exists() else "[zooplatform]\n"
        points.write_text(f"{before}{name} = {target or module}\n", encoding="utf-8")
        importlib.invalidate_caches()
        return module

    def forget(self) -> None:
        """Drop the installed modules from `sys.modules`, so that the next test imports its own."""
        for name in self._modules:
            sys.modules.pop(name, None)
