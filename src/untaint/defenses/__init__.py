"""Defences, one file each: the file name is the name."""

from untaint.defenses.base import Card, Defense, Detector, Mender, Outcome, Task
from untaint.registry import Registry

__all__ = ["DEFENSES", "Card", "Defense", "Detector", "Mender", "Outcome", "Task"]

DEFENSES: Registry[Defense] = Registry("untaint.defenses", "defence")
