"""SFAKD's frequency branch: filter, mask, spectra, and the weights of the branches over time.

Shapes: `C` channels, `H`/`W` of the student's final map.
"""

from __future__ import annotations

from typing import Any, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..blocks import Block, Figure, Note, Panel, Section, percent
from ..collect import Spectra, frequency_fusion
from ..material import Material
from ..measures import radial_profile
from ..runs import Run
from ..svg import NARROW, SERIES, draw, log_scale

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
        if run.method == "SFAKD" or frequency_fusion(run.source.student) is not None:
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
    elif fusion.frequency.mask().numel() == 1:
        spectra = None
        blocks.append(Note(f"The last map of {run.label} is 1×1: it has one frequency, so there is nothing to draw."))
    else:
        blocks += [_filter_figure(run, fusion), _channel_figure(run, fusion)]
    parts = [_weights(run)]
    if spectra is not None and not (spectra.before.any() and spectra.fused.any()):
        spectra = None
        blocks.append(Note(f"The last map of {run.label} is zero for all images, so it has no spectrum to draw."))
    if spectra is not None:
        blocks.append(_spectrum_maps(material, run, spectra))
        parts.insert(0, _energy(run, spectra))
    panels, captions = zip(*parts)
    blocks.append(Figure([panel for panel in panels if panel is not None], " ".join(captions)))
    return blocks


def effective_filter(fusion: Any) -> Tuple[Tensor, Tensor]:
    """Return the filter's Hermitian part, complex `[C, H, W]`, and the mask `[H, W]`; zero frequency in the middle.

    Only the Hermitian part acts on a real map.
    """
    with torch.no_grad():
        parts = fusion.frequency.filter.hermitian(), fusion.frequency.mask()
    weight, mask = (torch.fft.fftshift(part.cpu(), dim=(-2, -1)) for part in parts)
    return weight, mask


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
        narrow=True,
    )


def _channel_figure(run: Run, fusion: Any) -> Figure:
    weight, mask = effective_filter(fusion)
    inside = weight * mask
    chosen = (inside - inside.mean(0)).abs().square().sum((1, 2)).topk(min(NUM_CHANNELS, len(weight))).indices.tolist()
    magnitude, phase = weight[chosen].abs(), weight[chosen].angle() * 180 / torch.pi
    turned = max(float(phase.abs().max()), 0.01)
    kinds = (
        ("magnitude", magnitude, "viridis", (float(magnitude.min()), float(magnitude.max())), "|K|"),
        ("phase", phase, "twilight" if turned > 90 else "RdBu_r", (-turned, turned), "arg K, degrees"),
    )
    panels = []
    for kind, maps, colors, limits, unit in kinds:
        svg = _channel_grid(maps, chosen, colors, limits, unit)
        alt = f"The {kind} from {limits[0]:.3g} to {limits[1]:.3g}, for channels {', '.join(map(str, chosen))}."
        panels.append(Panel(f"Single channels: {kind}", svg, alt))
    return Figure(
        panels,
        f"The {len(chosen)} channels of {run.label} whose filter differs most from the mean filter, where the mask lets"
        " frequencies pass. The color scale need not start at zero. A phase of 180° turns the sign of a frequency,"
        " other phases move its wave within the map.",
    )


def _channel_grid(maps: Tensor, chosen: Sequence[int], colors: str, limits: Tuple[float, float], unit: str) -> str:
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)

    def paint(axes: Any) -> None:
        parts = axes if isinstance(axes, list) else [axes]
        for part in parts:
            part.set_axis_off()
        for part, channel, values in zip(parts, chosen, maps):
            image = _show(part, values, colors, limits)
            part.set_title(f"channel {channel}", fontsize=11)
        part.figure.colorbar(image, ax=parts, label=unit, shrink=0.8)

    return draw(paint, height=36 + 100 * rows, grid=(rows, columns), layout="compressed")


def _named(spectra: Spectra) -> Tuple[Tuple[str, Tensor, str], ...]:
    return (
        ("before", spectra.before, SERIES[0]),
        ("after filter and mask", spectra.filtered, SERIES[1]),
        ("after both branches", spectra.fused, SERIES[2]),
    )


def _spectrum_maps(material: Material, run: Run, spectra: Spectra) -> Figure:
    floor = 1e-3 * min(float(energy[energy > 0].min()) for energy in (spectra.before, spectra.fused))
    maps = [torch.fft.fftshift(energy).clamp(min=floor).log10() for energy in spectra]
    limits = min(float(maps[i].min()) for i in (0, 2)), max(float(each.max()) for each in maps)
    panels = [
        _map_panel(
            f"Spectrum {name}",
            values,
            "log10 of the energy",
            f"Map of the energy {name}: {10 ** float(values.max()):.3g} at most",
            "viridis",
            limits,
        )
        for (name, _, _), values in zip(_named(spectra), maps)
    ]
    return Figure(
        panels,
        f"Energy |FFT|² of the last map of {run.label}, mean over channels and over all {material.num_images:,}"
        " validation images: of the map itself, of the frequency branch before its weight α, and of the weighted sum of"
        " both branches, which the projector sees. One scale for all; the darkest color also stands for less.",
        narrow=True,
    )


def _energy(run: Run, spectra: Spectra) -> Tuple[Optional[Panel], str]:
    """Return a panel, and its part of the caption."""
    profiles = [(name, radial_profile(energy), color) for name, energy, color in _named(spectra)]
    lowest = 0.3 * min(float(profiles[i][1].min()) for i in (0, 2))

    def paint(axes: Any) -> None:
        for name, profile, color in profiles:
            axes.plot(range(len(profile)), profile.tolist(), marker="o", markersize=4, color=color, label=name)
        axes.set_ylim(bottom=lowest)
        log_scale(axes)
        axes.set_xlabel("distance from zero frequency, bins")
        axes.set_ylabel("mean energy")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()

    shares = [f"{name} {percent(1 - float(each[0, 0] / each.sum()), 1)} %" for name, each, _ in _named(spectra)]
    shares_in_words = ", ".join(shares)
    cut = " The mask is 0 at zero frequency, so that point of the branch is off the scale."
    return (
        Panel("Energy by frequency", draw(paint), f"Lines of the energy by frequency. {shares_in_words}."),
        f"Energy by frequency: the spectra of {run.label} as means over rings around zero frequency. Share of the"
        f" energy that is not at zero frequency: {shares_in_words}.{cut if profiles[1][1][0] < lowest else ''}",
    )


def _weights(run: Run) -> Tuple[Optional[Panel], str]:
    """Return a panel, `None` if there is nothing to draw, and its part of the caption."""
    series = {"α, frequency": run.series("fusion_alpha"), "β, spatial": run.series("fusion_beta")}
    sigma = run.series("mask_sigma")
    if not any(series.values()):
        return None, f"The log of {run.label} has no weights of the branches; earlier versions did not record them."

    def paint(axes: Any) -> None:
        for (name, values), color in zip(series.items(), SERIES[1::2]):
            if values:
                marker = "o" if len(values) <= 30 else None
                axes.plot(list(values), list(values.values()), color=color, marker=marker, markersize=4, label=name)
        axes.axhline(0, color=axes.spines["left"].get_edgecolor(), linewidth=0.8, alpha=0.5)
        axes.set_xlabel("epoch")
        axes.set_ylabel("weight")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="best")

    ends = "; ".join(f"{name} ends at {values[max(values)]:.3f}" for name, values in series.items() if values)
    width = f" The mask's width, which is trained here, ends at {sigma[max(sigma)]:.3g} bins." if sigma else ""
    return (
        Panel("Weights of the branches", draw(paint), f"{ends}."),
        f"Weights: α of the frequency branch and β of the spatial branch after each epoch, both from 0.5.{width}",
    )


def _map_panel(
    title: str, values: Tensor, unit: str, alt: str, colors: str = "viridis", limits: Tuple[float, float] = (0.0, 0.0)
) -> Panel:
    def paint(axes: Any) -> None:
        image = _show(axes, values, colors, limits)
        axes.set_xlabel("horizontal, bins")
        axes.set_ylabel("vertical, bins")
        axes.figure.colorbar(image, ax=axes, label=unit, shrink=0.85)

    return Panel(title, draw(paint, NARROW, 230, layout="compressed"), f"{alt}.")


def _show(axes: Any, values: Tensor, colors: str, limits: Tuple[float, float]) -> Any:
    height, width = values.shape
    bounds = {} if limits[0] == limits[1] else {"vmin": limits[0], "vmax": limits[1]}
    extent = (-(width // 2) - 0.5, (width + 1) // 2 - 0.5, (height + 1) // 2 - 0.5, -(height // 2) - 0.5)
    axes.grid(False)
    image = axes.imshow(values.numpy(), cmap=colors, extent=extent, interpolation="nearest", **bounds)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)
    return image
