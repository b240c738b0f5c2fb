"""What the layer before the pooling sees of two triggers that a network has learned, and of the same with EigenGuard there.

python examples/spectrum.py FOLDER
"""

import sys
from pathlib import Path

import untaint as ut
from untaint import samples, spectra
from untaint.attacks import ATTACKS
from untaint.models.build import build
from untaint.training.device import device

folder = Path(sys.argv[1])
attacks = {"patch": "patch:target=0,rate=0.05", "blend": "blend:target=3,pattern=noise,rate=0.05"}
made = {name: ATTACKS.build(text) for name, text in attacks.items()}
dirty, _ = ut.poison(ut.load(samples.path()), list(made.values()), seed=0)
test = ut.load(samples.path(), split="test")
shown = {name: ut.triggered(test, attack) for name, attack in made.items()}


def network():
    return build("proxy", 10, (3, 32, 32), mean=[0.48] * 3, scale=[0.25] * 3)


for name, make in {"plain": network, "guarded": lambda: ut.insert_eigenguard(network(), k=50)}.items():
    model = ut.train(dirty, out=folder / name, model=make)
    found = spectra.look(model.to(device()), test, shown)
    print(f"{name}: effective rank {found.rank:.0f}, clean accuracy {found.shown['patch'].accuracy[0]:.1%}")
    for trigger, one in found.shown.items():
        print(
            f"  {trigger}: effective rank {one.rank:.0f}, {one.energy[:10].sum():.0%} of its change in the 10 strongest directions "
            f"(of clean pictures' {one.clean_energy[:10].sum():.0%}), success {one.success[0]:.1%}"
        )
        for count in (1, 10):
            place = found.removed.index(count)
            print(
                f"    {count} strongest taken out: success {one.success[place]:.1%}, clean accuracy {one.accuracy[place]:.1%}; of its change "
                f"{one.energy[:count].sum():.1%} lies there, of clean pictures' {one.clean_energy[:count].sum():.1%}"
            )
    print(f"  {spectra.draw(found, folder / f'{name}.svg')}")
