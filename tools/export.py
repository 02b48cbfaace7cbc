"""Export a student: tools/export.py -c CKPT --format onnx|torch|safetensors [--half | --int8] [--output PATH]."""

from mdistiller.commands.export import command, main

__all__ = ["main"]

if __name__ == "__main__":
    command()
