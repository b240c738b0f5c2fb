"""Attacks x defences, one at a time and all at once: what to run is a grid file, what came out a JSON per cell."""

from untaint.bench.grid import Defender, Grid, Setting, Source, read_grid

__all__ = ["Defender", "Grid", "Setting", "Source", "read_grid"]
