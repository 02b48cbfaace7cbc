"""Knowledge distillation of image classifiers: MDistiller's surface, SFAKD as its flagship."""

__version__ = "0.1.0"
