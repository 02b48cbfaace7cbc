"""Exports of a deployed student to files that run elsewhere, each proven equal to the checkpoint."""
