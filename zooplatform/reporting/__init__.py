"""A zoo as one page: `write_report(catalog, zoo, folder)`."""

from __future__ import annotations

__all__: list[str] = []
