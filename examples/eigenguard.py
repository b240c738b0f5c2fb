"""Training on poisoned pictures without filtering any: an ordinary network, and the same with EigenGuard before its pooling.

python examples/eigenguard.py [K]
"""

import sys

import torch
from torch.nn.functional import cross_entropy

import untaint as ut
from untaint import samples
from untaint.attacks import ATTACKS
from untaint.models.build import build

k = int(sys.argv[1]) if len(sys.argv) > 1 else 50
attack = ATTACKS.build("patch:target=0,rate=0.05")
dirty, _ = ut.poison(ut.load(samples.path()), [attack], seed=0)
test = ut.load(samples.path(), split="test")
fooled = ut.triggered(test, attack)
x, y = torch.tensor(dirty.images) / 255, torch.tensor(dirty.labels)
clean, triggered = (torch.tensor(own.images[own.rows]) / 255 for own in (test, fooled))  # fooled: not class 0


def success(model, shown):
    """The share of 250 triggered pictures that are taken for class 0, so many of them in each batch of 125, the others clean."""
    batches = [torch.cat([own, clean[: 125 - shown]]) for own in triggered[:250].split(shown)]
    with torch.no_grad():
        return torch.cat([model.eval()(batch).argmax(1)[:shown] == 0 for batch in batches]).float().mean()


plain = build("proxy", 10, (3, 32, 32), mean=[0.48] * 3, scale=[0.25] * 3)
for name, model in (("without", plain), ("with EigenGuard", ut.insert_eigenguard(plain, at="before-pool", k=k))):
    steps = 12 * (len(x) // 125)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    torch.manual_seed(0)
    for _ in range(12):
        for rows in torch.randperm(len(x)).split(125)[: len(x) // 125]:
            optimizer.zero_grad(), cross_entropy(model(x[rows]), y[rows]).backward(), optimizer.step(), schedule.step()
    print(f"{name}: clean accuracy {ut.accuracy(model, test):.1%}, attack success {ut.accuracy(model, fooled):.1%}")
for guard in (module for module in model.modules() if isinstance(module, ut.EigenGuard)):
    guard.evaluating = "batch"  # as in the paper: what a picture is taken for depends on the others of its batch
print(
    f"by batches: attack success {success(model, 1):.1%} if one of 125 has the trigger, {success(model, 125):.1%} if all"
)
