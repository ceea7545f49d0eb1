"""`python bench` is `python -m rnnfast bench`."""

from rnnfast._bench.cli import main

raise SystemExit(main())
