"""SFAKD's frequency branch: filter, mask, spectra, and the weights of the branches over time.

Shapes: `C` channels, `H`/`W` of the student's final map.
"""

from __future__ import annotations

from typing import Any, List, Sequence, Tuple

import torch
from torch import Tensor

from ..blocks import Block, Figure, Note, Panel, Section
from ..material import Material
from ..measures import radial_profile
from ..observe import Spectra, frequency_fusion
from ..runs import Run
from ..svg import SERIES, draw

NUM_CHANNELS = 6  # drawn singly: those that the filter changes most


def frequency_section(material: Material) -> Section:
    """Return the drawings for each run of SFAKD."""
    section = Section(
        "frequency",
        "Frequencies (SFAKD)",
        "SFAKD multiplies the spectrum of the student's last map by a learned filter and a high-pass mask, and adds the"
        " result to a spatial branch. Zero frequency, the map's average, is in the middle of each square.",
    )
    for number, run in enumerate(material.runs):
        if run.method == "SFAKD":
            section.blocks += _run_blocks(material, number)
    if not section.blocks:
        section.blocks.append(Note("No run here was trained by SFAKD."))
    return section


def _run_blocks(material: Material, number: int) -> List[Block]:
    run, spectra = material.runs[number], material.seen[number].spectra
    fusion = frequency_fusion(run.source.student)
    blocks: List[Block] = []
    if fusion is None:
        blocks.append(
            Note(
                f"The student of {run.label} is deployed without a frequency branch (SFAKD.FREQUENCY_BRANCH False or"
                " SFAKD.CLASSIFIER student), so there is no filter to show."
            )
        )
    else:
        blocks += [_filter_figure(run, fusion), _channel_figure(run, fusion)]
    if fusion is not None and spectra is not None:
        blocks.append(_spectrum_figure(material, run, spectra))
    blocks.append(_weights(run))
    return blocks


def effective_filter(fusion: Any) -> Tuple[Tensor, Tensor]:
    """Return the filter's Hermitian part, complex `[C, H, W]`, and the mask `[H, W]`; zero frequency in the middle.

    Only the Hermitian part acts on a real map.
    """
    branch = fusion.frequency
    with torch.no_grad():
        weight = torch.view_as_complex(branch.filter.weight.detach().float().cpu().contiguous())
        mirrored = torch.roll(weight.flip(-2, -1), shifts=(1, 1), dims=(-2, -1)).conj()
        mask = branch.mask().detach().float().cpu()
    return torch.fft.fftshift(0.5 * (weight + mirrored), dim=(-2, -1)), torch.fft.fftshift(mask)


def _filter_figure(run: Run, fusion: Any) -> Figure:
    weight, mask = effective_filter(fusion)
    magnitude = weight.abs().mean(0)
    phase = weight.angle().abs().mean(0) * 180 / torch.pi
    alts = (
        f"Mean magnitude from {magnitude.min():.3g} to {magnitude.max():.3g}",
        f"Mean absolute phase from {phase.min():.3g} to {phase.max():.3g} degrees",
        f"Mask from {mask.min():.3g} in the middle to {mask.max():.3g}",
    )
    panels = [
        _map_panel("Filter: magnitude", magnitude, "mean |K|", alts[0]),
        _map_panel("Filter: phase", phase, "mean |arg K|, degrees", alts[1], "magma"),
        _map_panel("Mask", mask, "M", alts[2], "cividis", (0.0, 1.0)),
    ]
    return Figure(
        panels,
        f"The trained filter K of {run.label} and its mask M, one square a frequency. Magnitude and absolute phase are"
        f" means over the {len(weight)} channels; before training the magnitude is 1 and the phase 0 (with"
        " SFAKD.FILTER_INIT identity). Drawn is the Hermitian part of K: the rest has no effect on a real map.",
    )


def _channel_figure(run: Run, fusion: Any) -> Figure:
    weight, mask = effective_filter(fusion)
    change = ((weight - 1).abs() * mask).square().sum((1, 2))
    chosen = change.topk(min(NUM_CHANNELS, len(change))).indices.tolist()
    kinds = (
        ("magnitude", weight.abs(), "viridis", (0.0, float(weight[chosen].abs().max())), "|K|"),
        ("phase", weight.angle() * 180 / torch.pi, "twilight", (-180.0, 180.0), "degrees"),
    )
    panels = []
    for kind, maps, colours, limits, unit in kinds:
        svg = _channel_grid(maps, chosen, colours, limits, unit)
        channels = ", ".join(map(str, chosen))
        panels.append(Panel(f"Single channels: {kind}", svg, f"Maps of the {kind} for channels {channels}."))
    return Figure(
        panels,
        f"The {len(chosen)} channels whose filter differs most from 1, weighted by the mask, with the largest first."
        " A phase of 180° turns the sign of a frequency, other phases move it within the map.",
    )


def _channel_grid(maps: Tensor, chosen: Sequence[int], colours: str, limits: Tuple[float, float], unit: str) -> str:
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)

    def paint(axes: Any) -> None:
        parts = axes if isinstance(axes, list) else [axes]
        for part in parts:
            part.set_axis_off()
        for part, channel in zip(parts, chosen):
            image = _show(part, maps[channel], colours, limits)
            part.set_title(f"channel {channel}", fontsize=11)
        part.figure.colorbar(image, ax=parts, label=unit, shrink=0.8)

    return draw(paint, height=60 + 110 * rows, grid=(rows, columns))


def _spectrum_figure(material: Material, run: Run, spectra: Spectra) -> Figure:
    parts = (
        ("before: the student's map", spectra.before, SERIES[0]),
        ("frequency branch", spectra.filtered, SERIES[1]),
        ("after: both branches", spectra.fused, SERIES[2]),
    )

    def paint(axes: Any) -> None:
        for name, energy, colour in parts:
            profile = radial_profile(energy).tolist()
            axes.plot(range(len(profile)), profile, marker="o", markersize=4, color=colour, label=name)
        axes.set_yscale("log")
        axes.set_xlabel("distance from zero frequency, bins")
        axes.set_ylabel("mean energy")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()

    def shifted(energy: Tensor) -> Tensor:
        return torch.fft.fftshift(energy).clamp(min=1e-12).log10()

    maps = [shifted(spectra.before), shifted(spectra.fused)]
    limits = min(float(each.min()) for each in maps), max(float(each.max()) for each in maps)
    first, last = radial_profile(spectra.before), radial_profile(spectra.fused)
    high = [float(profile[1:].sum() / profile.sum()) for profile in (first, last)]
    alt = f"Lines of energy by frequency. Share outside zero frequency: before {high[0]:.3f}, after {high[1]:.3f}."
    panels = [
        Panel("Energy by frequency", draw(paint), alt),
        _map_panel("Spectrum before", maps[0], "log10 energy", "Map of the energy before the branches", limits=limits),
        _map_panel("Spectrum after", maps[1], "log10 energy", "Map of the energy after the branches", limits=limits),
    ]
    return Figure(
        panels,
        f"Energy |FFT|² of the last map of {run.label}, mean over channels and over all {material.num_images:,}"
        " validation images. Left: means over rings around zero frequency, for the map itself, for the frequency branch"
        " (filter and mask) before its weight, and for the weighted sum of both branches, which the projector sees.",
    )


def _weights(run: Run) -> Block:
    series = {"α, frequency": run.series("fusion_alpha"), "β, spatial": run.series("fusion_beta")}
    sigma = run.series("mask_sigma")
    if not any(series.values()):
        return Note(f"{run.label} logged no weights of its branches; runs of earlier versions did not.")

    def paint(axes: Any) -> None:
        for (name, values), colour in zip(series.items(), SERIES[1::2]):
            if values:
                marker = "o" if len(values) <= 30 else None
                axes.plot(list(values), list(values.values()), color=colour, marker=marker, markersize=4, label=name)
        axes.axhline(0, color=axes.spines["left"].get_edgecolor(), linewidth=0.8, alpha=0.5)
        axes.set_xlabel("epoch")
        axes.set_ylabel("weight")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()

    ends = "; ".join(f"{name} ends at {values[max(values)]:.3f}" for name, values in series.items() if values)
    width = f" The mask's width, which is trained here, ends at {sigma[max(sigma)]:.3g} bins." if sigma else ""
    return Figure(
        [Panel("Weights of the branches", draw(paint), f"{ends}.")],
        f"The weights α of the frequency branch and β of the spatial branch of {run.label} after each epoch; both start"
        f" at 0.5.{width}",
    )


def _map_panel(
    title: str, values: Tensor, unit: str, alt: str, colours: str = "viridis", limits: Tuple[float, float] = (0.0, 0.0)
) -> Panel:
    def paint(axes: Any) -> None:
        image = _show(axes, values, colours, limits)
        axes.set_xlabel("horizontal frequency, bins")
        axes.set_ylabel("vertical frequency, bins")
        axes.figure.colorbar(image, ax=axes, label=unit)

    return Panel(title, draw(paint), f"{alt}.")


def _show(axes: Any, values: Tensor, colours: str, limits: Tuple[float, float]) -> Any:
    height, width = values.shape
    bounds = {} if limits[0] == limits[1] else {"vmin": limits[0], "vmax": limits[1]}
    extent = (-(width // 2) - 0.5, (width + 1) // 2 - 0.5, (height + 1) // 2 - 0.5, -(height // 2) - 0.5)
    axes.grid(False)
    image = axes.imshow(values.numpy(), cmap=colours, extent=extent, interpolation="nearest", **bounds)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)
    return image
