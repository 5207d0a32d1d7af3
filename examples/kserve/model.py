"""KServe: a custom predictor that answers with a network's outputs and their verdicts.

    python model.py --model_name covary --exported /mnt/models

Needs covary, onnxruntime and kserve; no torch. Without kserve, `covary serve` speaks the same protocol by itself.
"""

from __future__ import annotations

import argparse
from typing import Any

from kserve import (  # pyright: ignore[reportMissingImports]
    InferOutput,
    InferRequest,
    InferResponse,
    Model,
    ModelServer,
    model_server,
)
from kserve.errors import InvalidInput  # pyright: ignore[reportMissingImports]

from covary.errors import CovaryError
from covary.serving.exported.scorer import ExportedDetector

DATATYPES = {"logits": "FP32", "predicted": "INT64", "score": "FP64", "p_value": "FP64", "flagged": "BOOL"}


class Covary(Model):
    """Answers and verdicts by an exported detector."""

    def __init__(self, name: str, folder: str) -> None:
        super().__init__(name)
        self.folder = folder
        self.load()

    def load(self) -> bool:
        """Opens the exported folder; every byte of it is checked."""
        self.exported = ExportedDetector.load(self.folder)
        self.ready = True
        return self.ready

    def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:
        """Verdicts on the first input tensor of a V2 request."""
        try:
            outputs = self.exported.run(payload.inputs[0].as_numpy())
        except CovaryError as problem:
            raise InvalidInput(str(problem)) from problem
        verdicts = self.exported.judge(outputs)
        found = {name: outputs[name] for name in ("logits", "predicted")}
        found |= {name: getattr(verdicts, name) for name in ("score", "p_value", "flagged")}
        tensors = []
        for name, values in found.items():
            tensor = InferOutput(name=name, shape=list(values.shape), datatype=DATATYPES[name])
            tensor.set_data_from_numpy(values, binary_data=False)
            tensors.append(tensor)
        return InferResponse(response_id=payload.id, model_name=self.name, infer_outputs=tensors)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    parser.add_argument("--exported", required=True, help="folder that `covary export` wrote")
    known, _ = parser.parse_known_args()
    ModelServer().start([Covary(known.model_name, known.exported)])
