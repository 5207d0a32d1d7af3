"""Triton's Python backend: a network's answers and their verdicts, from a folder that `covary export` wrote.

Needs covary and onnxruntime in the backend's environment, no torch. Requests that come together are judged together in
one pass of the graph; each gets a response of its own.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]

from covary.errors import CovaryError
from covary.serving.exported.scorer import ExportedDetector


class TritonPythonModel:
    """What Triton loads, once an instance."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Opens the exported folder that the model's configuration names; every byte of it is checked."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.exported = ExportedDetector.load(parameters["exported"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order; a bad one gets an error and leaves the others alone."""
        arrays, errors = [], {}
        for i, request in enumerate(requests):
            inputs = pb_utils.get_input_tensor_by_name(request, "inputs").as_numpy()
            try:
                arrays.append(self.exported.check(inputs))
            except CovaryError as problem:
                errors[i] = str(problem)
        found = self._judged(np.concatenate(arrays)) if arrays else {}
        responses, done = [], 0
        for i in range(len(requests)):
            if i in errors:
                error = pb_utils.TritonError(errors[i])
                responses.append(pb_utils.InferenceResponse(output_tensors=[], error=error))
                continue
            n = len(arrays.pop(0))
            tensors = [pb_utils.Tensor(name, values[done : done + n]) for name, values in found.items()]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
            done += n
        return responses

    def _judged(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        outputs = self.exported.run(inputs)
        verdicts = self.exported.judge(outputs)
        return {
            "logits": outputs["logits"],
            "predicted": outputs["predicted"].reshape(-1, 1),
            "score": verdicts.score.reshape(-1, 1),
            "p_value": verdicts.p_value.reshape(-1, 1),
            "flagged": verdicts.flagged.reshape(-1, 1),
        }
