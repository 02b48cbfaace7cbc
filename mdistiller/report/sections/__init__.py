"""The sections of the page, one file each."""

from __future__ import annotations

from typing import List

from ..blocks import Section
from ..material import Material
from .agreement import agreement_section
from .calibration import calibration_section
from .classes import classes_section
from .cost import cost_section
from .features import features_section
from .frequency import frequency_section
from .images import images_section
from .settings import configuration_section, environment_section
from .summary import summary_section
from .training import training_section

__all__ = ["all_sections"]


def all_sections(material: Material) -> List[Section]:
    """Return the sections in the order of the page."""
    parts = (
        summary_section,
        training_section,
        agreement_section,
        classes_section,
        calibration_section,
        images_section,
        frequency_section,
        features_section,
        cost_section,
        configuration_section,
        environment_section,
    )
    return [part(material) for part in parts]
