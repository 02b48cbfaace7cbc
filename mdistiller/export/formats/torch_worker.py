"""Runs a `.pt2` file for `FreshProcess`: images on stdin, logits on stdout.

Each array is in NumPy's format, after its length in bytes (8 bytes, little endian).

This file is run as a script, so that nothing of this library is imported.
"""

import io
import os
import sys

import numpy as np
import torch


def main(path, threads):  # type: ignore[no-untyped-def]
    torch.set_num_threads(int(threads))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    module = torch.export.load(path).module()
    while True:
        length = int.from_bytes(sys.stdin.buffer.read(8), "little")
        if not length:  # the input has ended
            return
        images = np.load(io.BytesIO(sys.stdin.buffer.read(length)), allow_pickle=False)
        with torch.inference_mode():
            logits = module(torch.from_numpy(images)).numpy()
        answer = io.BytesIO()
        np.save(answer, logits, allow_pickle=False)
        answers.write(len(answer.getvalue()).to_bytes(8, "little") + answer.getvalue())
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
