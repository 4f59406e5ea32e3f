"""BentoML with one worker and typed arrays."""

import os
import sys
from pathlib import Path

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=1)
class Tiny:
    def __init__(self) -> None:
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"])

    @bentoml.api
    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"x": x.astype(np.float32)})[0]


if __name__ == "__main__":
    tool = str(Path(sys.executable).with_name("bentoml"))
    where = ["--host", "127.0.0.1", "--port", sys.argv[1], "--working-dir", str(Path(__file__).parent)]
    os.execve(tool, [tool, "serve", "serve_bentoml:Tiny", *where], {**os.environ, "DO_NOT_TRACK": "True"})
