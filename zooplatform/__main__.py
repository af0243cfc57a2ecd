"""`python -m zooplatform` is the same as `zoo`."""

from __future__ import annotations

from zooplatform.cli import main

if __name__ == "__main__":
    main(prog_name="zoo")
