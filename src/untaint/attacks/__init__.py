"""Attacks, one file each: the file name is the name.

``ATTACKS.build("patch:target=0,rate=0.01")`` makes one, ``ATTACKS.names()`` lists them.
"""

from __future__ import annotations

from untaint.attacks._kept import Computed
from untaint.attacks.base import Attack, CleanLabel
from untaint.registry import Registry

__all__ = ["ATTACKS", "Attack", "CleanLabel", "Computed"]

ATTACKS: Registry[Attack] = Registry("untaint.attacks", "attack")
