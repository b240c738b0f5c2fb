"""What a layer of a network sees in pictures with and without a trigger: singular spectra, effective rank, and where a trigger's energy lies.

    found = look(model, clean, shown, at="layer3")     # arrays
    draw(found, "spectrum.svg")                        # and a picture of them

    seen = []                                          # through a training
    ut.train(dirty, after_epoch=lambda model, epoch: seen.append(look(model, clean, shown, removed=(0,))))
    draw_through(seen, "training.svg")

The matrix looked at has a row for each picture, as EigenGuard's with ``matrix="flat"``. A backdoor is said to make its pictures alike in
a few strong directions (ICLR 2024, submission 4413); here that is measured, for triggered pictures by themselves and for a few of them among clean ones, as they come.
"""

from untaint.spectra.looking import Shown, Spectrum, look
from untaint.spectra.measures import effective_rank, energy_along, projected, singular_values, top_directions
from untaint.spectra.picture import draw, draw_through
from untaint.spectra.removing import removing
from untaint.training.features import layer_features

__all__ = [
    "Shown",
    "Spectrum",
    "draw",
    "draw_through",
    "effective_rank",
    "energy_along",
    "layer_features",
    "look",
    "projected",
    "removing",
    "singular_values",
    "top_directions",
]
