"""From a configuration to a trained, saved and evaluated student."""

from .trainer import Trainer, trainer_dict

__all__ = ["Trainer", "trainer_dict"]
