"""Choose stage maps among the maps that a model computes one after the other."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Sequence

from .layout import Layout

NUM_STAGES = 4  # of a model whose maps all have one size


class Candidate(NamedTuple):
    """A map that may represent a stage.

    Attributes:
        key: the identity of the map: a node of a graph, or the name of a module.
        layout: the layout of the tensor.
        depth: the nesting depth of the outermost module that ends with this map; 0 for a direct child of the model.
        in_stem: whether at most one layer with weights was applied before.
    """

    key: Any
    layout: Layout
    depth: int
    in_stem: bool


def stages_of(
    candidates: Sequence[Candidate], given: Mapping[str, Any], find: Callable[[str, Sequence[Candidate]], Candidate]
) -> List[Candidate]:
    """Return the stage maps that a user names, or those of `choose_stages`; empty if there are no candidates.

    Args:
        candidates: the maps that may represent stages, in the order of computation.
        given: the names of modules; `final_map` replaces the last candidate, `feats` the choice.
        find: a function of a module's name and the candidates. It returns the candidate that this module computes, or
            raises a UserError.
    """
    if "final_map" in given:
        candidates = candidates[: candidates.index(find(given["final_map"], candidates)) + 1]
    if not candidates:
        return []
    if "feats" not in given:
        return choose_stages(candidates)
    stages = [find(path, candidates) for path in given["feats"]]
    if "final_map" in given and stages[-1] is not candidates[-1]:
        stages.append(candidates[-1])
    return stages


def choose_stages(candidates: Sequence[Candidate]) -> List[Candidate]:
    """Return the stem's map and, for each size of maps, the last one at the end of an outermost part.

    A model whose maps all have the same size, such as a vision transformer, gets `NUM_STAGES` evenly spaced maps. The
    last entry is the last candidate.

    Args:
        candidates: the maps that may represent stages, in the order of computation, at least one.
    """
    by_side: Dict[int, List[Candidate]] = {}
    for candidate in candidates:
        by_side.setdefault(candidate.layout.side, []).append(candidate)
    chosen = [_outermost(group, 1)[-1] for group in by_side.values()]
    if len(chosen) < 3:
        group = max(by_side.values(), key=len)
        parts = _outermost([candidate for candidate in group if not candidate.in_stem] or group, NUM_STAGES)
        spaced = [parts[(i + 1) * len(parts) // NUM_STAGES - 1] for i in range(min(NUM_STAGES, len(parts)))]
        chosen = [c for c in chosen if c.layout.side != group[0].layout.side] + spaced
    stem = [candidate for candidate in candidates if candidate.in_stem]
    final = candidates[-1]
    if chosen[-1].layout.side == final.layout.side:
        chosen = chosen[:-1]
    chosen = [candidate for candidate in candidates if candidate is final or any(candidate is c for c in chosen)]
    if stem and candidates.index(stem[-1]) < candidates.index(chosen[0]):
        chosen = [stem[-1], *chosen]
    return chosen


def _outermost(group: List[Candidate], count: int) -> List[Candidate]:
    """Return the members of the least depth that has at least `count` of them, or else all."""
    for depth in sorted({candidate.depth for candidate in group}):
        found = [candidate for candidate in group if candidate.depth == depth]
        if len(found) >= count:
            return found
    return group
