"""Models by name: the proxy, torchvision's, and timm's if it is installed."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from untaint import rng, spec
from untaint.errors import SpecError
from untaint.models.eigenguard import EigenGuard
from untaint.models.gate import Gate
from untaint.models.group_norm import Grouped
from untaint.models.inserting import Guard
from untaint.models.proxy import Proxy
from untaint.models.stamp import Stamp
from untaint.models.whitening import Whiten

__all__ = ["Inserted", "Pixels", "build", "features_of", "names", "parted", "require"]

PROXIES: dict[str, dict[str, int]] = {
    "proxy": {},
    "proxy-wide": {"width": 32},
    "proxy-narrow": {"width": 8},
    "proxy-half": {"shrink": 2},
}
Inserted = Guard | Gate | Whiten | Grouped | Stamp
INSERTED: dict[str, type[Inserted]] = {
    "eigenguard": Guard,
    "gate": Gate,
    "group-norm": Grouped,
    "stamp": Stamp,
    "whitening": Whiten,
}
SMALL = 64  # pictures up to this size get a stem that does not throw resolution away
WIDE = 512  # features of VGG


class Pixels(nn.Module):
    """First layer: centres, scales and perhaps filters pictures in [0, 1]; makes grey ones three-channel.

    ``kernel``: float (channels, channels, side, side), a fixed convolution (borders are reflected).
    """

    mean: Tensor
    scale: Tensor
    kernel: Tensor | None

    def __init__(self, mean: list[float], scale: list[float], kernel: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("scale", torch.tensor(scale).view(1, -1, 1, 1))
        self.register_buffer("kernel", kernel)

    def forward(self, images: Tensor) -> Tensor:
        """Return float pictures (batch, 3, height, width)."""
        images = (images - self.mean) / self.scale
        if self.kernel is not None:
            border = self.kernel.shape[-1] // 2
            images = nn.functional.conv2d(nn.functional.pad(images, [border] * 4, mode="reflect"), self.kernel)
        return images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)


def names() -> list[str]:
    """Return the names of models that can be built (timm's are too many to list)."""
    import torchvision

    return [*PROXIES, *torchvision.models.list_models(module=torchvision.models)]


def require(name: str) -> None:
    """Raise SpecError unless there is a model of that name; nothing is built."""
    plain, inserted = parted(name)
    if plain not in names():
        _require_timm(plain)
    for one in inserted:
        if isinstance(one, Guard):
            EigenGuard(**{key: value for key, value in asdict(one).items() if key != "at"})


def parted(name: str) -> tuple[str, tuple[Inserted, ...]]:
    """Return the network's own name and what is put into it: ``resnet18+eigenguard:k=50,at=layer3`` names a network with EigenGuard behind a layer."""
    plain, *texts = name.split("+")
    inserted: list[Inserted] = []
    for text in texts:
        kind, options = spec.parse(text)
        if kind not in INSERTED:
            raise SpecError(
                f"'{name}' puts '{kind}' into {plain}. Only {', '.join(sorted(INSERTED))} can be put into a network."
            )
        inserted.append(spec.build(INSERTED[kind], kind, options))
    return plain, tuple(inserted)


def build(
    name: str,
    classes: int,
    size: tuple[int, int, int],
    *,
    seed: int = 0,
    mean: list[float] | None = None,
    scale: list[float] | None = None,
    kernel: Tensor | None = None,
) -> nn.Module:
    """Make an untrained model for pictures of ``size`` (channels, height, width) in [0, 1].

    ``mean`` and ``scale`` (one per channel) and ``kernel`` (a fixed filter) go into its first layer;
    without them pixels stay as they are. With ``+eigenguard:k=50`` behind its name it has that layer, with ``+gate`` an empty TriggerGate, with ``+whitening`` that one, with ``+stamp`` it stamps what it is asked about, with ``+group-norm`` it has no batch normalisation. The weights depend on the seed alone; the caller's generator is left untouched.
    """
    channels, (plain, inserted) = size[0], parted(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.derive(seed, "weights"))
        network = _network(plain, classes, min(size[1:]))
    whole: nn.Module = nn.Sequential(Pixels(mean or [0.0] * channels, scale or [1.0] * channels, kernel), network)
    _try(name, whole, size)
    for one in inserted:
        whole = one.put_into(whole)
    return whole


def _try(name: str, network: nn.Module, size: tuple[int, int, int]) -> None:
    """Show the network one grey picture; raises SpecError if it cannot take one of this size."""
    try:
        with torch.inference_mode():
            network.eval()(torch.full((1, *size), 0.5))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise SpecError(
            f"{name} cannot take pictures of {size[2]}x{size[1]} pixels ({str(error).splitlines()[0].rstrip('.')}). "
            "Give a larger --size, or another model."
        ) from error
    network.train()


def _network(name: str, classes: int, size: int) -> nn.Module:
    if name in PROXIES:
        return Proxy(classes, **PROXIES[name])
    import torchvision

    network: nn.Module
    if name in torchvision.models.list_models(module=torchvision.models):
        extra: dict[str, Any] = {}
        if name in ("googlenet", "inception_v3"):
            extra = {"aux_logits": False, "init_weights": True}
        elif name.startswith("vit_"):
            extra = {"image_size": size}
        try:
            network = torchvision.models.get_model(name, weights=None, num_classes=classes, **extra)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise SpecError(f"{name} cannot take pictures of {size} pixels ({reason}). Give another --size.") from error
    else:
        network = _timm(name, classes, size)
    if size <= SMALL:
        _small_stem(network)
        if name.startswith("vgg"):
            _small_classifier(network, classes)
    return network


def _require_timm(name: str) -> None:
    try:
        import timm
    except ImportError:
        near = difflib.get_close_matches(name, names(), n=1)
        hint = (
            f" Did you mean '{near[0]}'?"
            if near
            else " See `untaint list models`; with timm installed its models can be named too."
        )
        raise SpecError(f"no model '{name}'.{hint}") from None
    if name not in timm.list_models(name):
        near = difflib.get_close_matches(name, [*names(), *timm.list_models()], n=1)
        raise SpecError(f"no model '{name}' in torchvision or timm." + (f" Did you mean '{near[0]}'?" if near else ""))


def _timm(name: str, classes: int, size: int) -> nn.Module:
    _require_timm(name)
    import timm

    try:
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, img_size=size)
    except TypeError:  # convolutional networks take any size and have no such argument
        network = timm.create_model(name, pretrained=False, num_classes=classes)
    return network


def _small_stem(network: nn.Module) -> None:
    """Make the first convolution, if it is wide and strided, a 3x3 of stride 1; pooling is kept (as in the paper)."""
    for path, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            wide = layer.kernel_size[0] in (5, 7) and layer.stride[0] == 2
            strided = layer.kernel_size[0] == 3 and layer.stride[0] == 2
            if wide or strided:
                parent = network.get_submodule(path.rpartition(".")[0])
                stem = nn.Conv2d(
                    layer.in_channels, layer.out_channels, 3, stride=1, padding=1, bias=layer.bias is not None
                )
                nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
                setattr(parent, path.rpartition(".")[2], stem)
            return


def _small_classifier(network: nn.Module, classes: int) -> None:
    """Give VGG hidden layers as wide as its features, and one place to see: of a small picture, 7x7 places are copies of one another (Liu and Deng, ACPR 2015)."""
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    layers = network.get_submodule("classifier")
    assert isinstance(layers, nn.Sequential)
    places = [place for place, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
    for place, told in zip(places, (WIDE, WIDE, classes), strict=True):
        linear = nn.Linear(WIDE, told)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers[place] = linear


def head_of(model: nn.Module) -> nn.Linear | None:
    """Return the last linear layer of a model, whose input are the penultimate features."""
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    return linear[-1] if linear else None


@contextmanager
def features_of(model: nn.Module) -> Iterator[list[Tensor]]:
    """Give a list that holds the penultimate features of the latest forward pass as its only entry."""
    latest: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        latest[:] = [inputs[0].detach()]

    head = head_of(model)
    if head is None:
        yield latest
        return
    handle = head.register_forward_pre_hook(keep)
    try:
        yield latest
    finally:
        handle.remove()
