"""A zoo as one page: what it is, how its networks learn, what decides how good they get.

`write_report(catalog, zoo, folder)` asks the catalog in SQL, draws with matplotlib (the extra `report`) and writes one
HTML file that needs nothing else, neither network nor script.
"""

from __future__ import annotations

from zooplatform.reporting.report import Report, write_report

__all__ = ["Report", "write_report"]
