"""A network that was trained on poisoned pictures, and the same made to overlook what it learned of a trigger: no clean pictures, no training.

python examples/repair.py
"""

import untaint as ut
from untaint import samples
from untaint.attacks import ATTACKS

attacks = [
    ATTACKS.build(text) for text in ("patch:target=0,rate=0.02", "blend:target=3,pattern=noise,alpha=0.4,rate=0.02")
]
dirty, ledger = ut.poison(ut.load(samples.path()), attacks, seed=0)
test = ut.load(samples.path(), split="test")
model = ut.train(dirty)
repaired = ut.repair(model, dirty)  # a copy: any network of float pictures in [0, 1], and what it was trained on
for name, network in (("trained", model), ("repaired", repaired.model)):
    success = ", ".join(f"{ut.accuracy(network, ut.triggered(test, attack)):.1%}" for attack in attacks)
    print(f"{name}: clean accuracy {ut.accuracy(network, test):.1%}, attack success {success}")
poisoned = set(ledger.poisoned().tolist())
for found in repaired.components:
    print(
        f"overlooked in {len(found.rows)} pictures of class {test.class_names[found.label]}, {len(poisoned & set(found.rows.tolist()))} of them poisoned"
    )
