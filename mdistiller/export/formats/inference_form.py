"""The network that is exported: normalization, folded BatchNorms, and no Fourier transform.

Shapes: `N` images, `S` side in pixels, `C` channels, `H`/`W` height and width of a map, `K` classes.
"""

from __future__ import annotations

import copy
from typing import Any, Dict, List, Sequence, Set, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...distillers import DeployedStudent
from ...distillers._spectral import FrequencyBranch
from ...distillers.SFAKD import Fusion
from ...engine.speed.fold_batchnorm import fold_batchnorm
from ...models._adapt import AdaptedModel, insert
from ...models._outputs import standardize_output


class CircularConvolution(nn.Module):
    """A depthwise convolution of maps that continue periodically, in place of a filter in the frequency domain.

    For a real map `x`, `Re(IFFT2(FFT2(x) ⊙ G))` is the circular convolution of `x` with `Re(IFFT2(G))`.

    Args:
        kernel: the kernel `Re(IFFT2(G))`, real `[C, H, W]`, for maps of that size.
    """

    weight: Tensor

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        # conv2d correlates, and the map below continues to the right and to the bottom: tap t has the offset -t
        taps = torch.roll(kernel.flip(-2, -1), shifts=(1, 1), dims=(-2, -1))
        self.weight = nn.Parameter(taps[:, None].contiguous(), requires_grad=False)

    def forward(self, feature: Tensor, weight: Union[float, Tensor] = 1.0) -> Tensor:
        """Filter `feature [N, C, H, W]`, and multiply it by `weight`."""
        height, width = self.weight.shape[-2:]
        tall = torch.cat([feature, feature[:, :, : height - 1]], 2) if height > 1 else feature
        whole = torch.cat([tall, tall[:, :, :, : width - 1]], 3) if width > 1 else tall
        return weight * F.conv2d(whole, self.weight, groups=self.weight.shape[0])


class Sum(nn.ModuleList):
    """The sum of the outputs of several modules for the same input."""

    def forward(self, feature: Tensor) -> Tensor:
        parts = [module(feature) for module in self]
        return sum(parts[1:], parts[0])


def circular_convolution(branch: FrequencyBranch, weight: float = 1.0) -> CircularConvolution:
    """Return the convolution that equals `weight` times a frequency branch; computed in float64."""
    dtype = branch.filter.weight.dtype
    gain = copy.deepcopy(branch).double().gain(weight)
    # the half spectrum is that of the Hermitian part, whose inverse transform is the real part that the branch keeps
    return CircularConvolution(torch.fft.irfft2(gain, s=branch.mask.fixed.shape).detach().to(dtype))


def real_fusion(fusion: Fusion) -> nn.Module:
    """Return plain convolutions that equal SFAKD's fusion; the weights of its branches are in their kernels.

    The two convolutions stay apart: one convolution that does the work of both would be dense, with `C` times the
    operations of the depthwise one.
    """
    branches: List[nn.Module] = []
    if isinstance(fusion.spatial, nn.Conv2d) and fusion.beta is not None:
        spatial, beta = fusion.spatial, fusion.beta.detach().double()
        conv = nn.Conv2d(spatial.in_channels, spatial.out_channels, 1, bias=spatial.bias is not None).to(spatial.weight)
        conv.load_state_dict({name: (beta * p.double()).to(p.dtype) for name, p in spatial.state_dict().items()})
        branches.append(conv)
    if isinstance(fusion.frequency, FrequencyBranch) and fusion.alpha is not None:
        branches.append(circular_convolution(fusion.frequency, float(fusion.alpha.detach().double())))
    return branches[0] if len(branches) == 1 else Sum(branches)


def without_fourier(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in which convolutions replace SFAKD's fusions and frequency branches."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, Fusion):
            _replace(model, name, real_fusion(module))
    for name, module in list(model.named_modules()):
        if isinstance(module, FrequencyBranch):
            _replace(model, name, circular_convolution(module))
    return model


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _without_unused(model: nn.Module, image: Tensor) -> nn.Module:
    """Replace, in place, the layers that the output does not depend on, such as a classifier that a head replaces."""
    called: Set[nn.Module] = set()
    hooks = [m.register_forward_hook(lambda module, inputs, output: called.add(module)) for m in model.modules()]
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_()
    gradients = torch.autograd.grad(model(image).sum(), list(parameters.values()), allow_unused=True)
    for hook in hooks:
        hook.remove()
    used = {name.rpartition(".")[0] for name, gradient in zip(parameters, gradients) if gradient is not None}
    unused = {
        name: module
        for name, module in model.named_modules()
        if list(module.parameters(recurse=False))
        and module not in called
        and name not in used
        and not list(module.children())
    }
    for name in unused:
        _replace(model, name, nn.Identity())
    try:
        model(image)
    except AttributeError:  # a module uses a layer's weights without a gradient, and does not call the layer
        for name, module in unused.items():
            _replace(model, name, module)
    return model.requires_grad_(False)


class LogitsModel(AdaptedModel):
    """A model that computes only its logits, by its own `forward`."""

    def forward(self, *args: Any, **kwargs: Any) -> Tuple[Tensor, Dict[str, Any]]:
        output = super(AdaptedModel, self).forward(*args, **kwargs)
        return (output if isinstance(output, Tensor) else standardize_output(output, self.adapted_name)[0]), {}


def with_logits_alone(model: nn.Module) -> nn.Module:
    """Make an adapted model a `LogitsModel`, in place, and return it; any other model is returned unchanged."""
    if not isinstance(model, AdaptedModel):
        return model
    name, changed = model.adapted_name, model
    changed.__class__ = type(model).__bases__[1]
    return insert(changed, LogitsModel, name)


class InferenceForm(nn.Module):
    """Images in [0, 1] to logits: the only input and output of an export.

    Args:
        model: a model that takes normalized images `[N, 3, S, S]` to logits `[N, K]`.
        mean, std: the channel statistics of images in [0, 1], three numbers each.
        half: whether to compute in float16 between the normalization and the logits.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float], half: bool = False) -> None:
        super().__init__()
        self.model = model.half() if half else model
        self.half_precision = half
        means, stds = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (mean, std))
        self.register_buffer("scale", (1 / stds).float())
        self.register_buffer("shift", (-means / stds).float())

    def forward(self, image: Tensor) -> Tensor:
        """Return float32 logits `[N, K]` of `image`, float32 `[N, 3, S, S]` in [0, 1]."""
        normalized = image * self.scale + self.shift
        if self.half_precision:
            return self.model(normalized.half()).float()
        return self.model(normalized)


def inference_form(
    student: DeployedStudent, input_size: int, mean: Sequence[float], std: Sequence[float], half: bool = False
) -> InferenceForm:
    """Return the network to export for a deployed student, on the CPU; the student does not change.

    Args:
        student: the deployed student, with float32 weights.
        input_size: the side of its images in pixels.
        mean, std, half: see `InferenceForm`.
    """
    made = copy.deepcopy(student).cpu()
    if student.head is None:
        made = DeployedStudent(with_logits_alone(made.backbone))
    model = without_fourier(made).eval()
    model = _without_unused(model, torch.rand(2, 3, input_size, input_size))
    folded, _ = fold_batchnorm(model, input_size)
    return InferenceForm(folded, mean, std, half).eval()
