"""The step buffers on a GPU: small inputs and results at fixed addresses, where a captured graph finds them.

Inputs are written before a step where they changed. After the step the hidden state and a summary of the logits are
read, and the logits themselves only where something asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from sol_rt.engine.distribution import Distribution, SoftmaxSums
from sol_rt.engine.gpu.device_memory import DeviceMemory
from sol_rt.engine.gpu.logit_summary import LogitSummary, SummarisedDistribution
from sol_rt.engine.step import StepBuffers, StepOutput

import onnxruntime as ort


class DeviceInputs:
    """The step buffers on the GPU, and how they are copied between there and main memory.

    Args:
        memory: the GPU's memory.
        buffers: inputs and results of decode steps in main memory. A step takes what the inputs hold when it starts
            and fills the results, but for the logits if there is a summary of them.
        summary: the summary of logits that graphs compute, or None if they compute none.
        sums: computes the softmax sums of a row of logits.
    """

    def __init__(
        self,
        memory: DeviceMemory,
        buffers: StepBuffers,
        summary: LogitSummary | None,
        sums: Callable[[np.ndarray], SoftmaxSums],
    ) -> None:
        self._memory, self._buffers, self.summary, self._sums = memory, buffers, summary, sums
        self._inputs = memory.mirror(buffers.inputs)
        self.inputs = self._inputs.values
        self.host_inputs = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in buffers.inputs.items()}
        results = buffers.results if summary is None else {**buffers.results, **summary.arrays}
        self._results = memory.mirror(results, apart=["logits"])
        self._logits_are_here = self._logits_were_asked_for = False

    def send(self) -> None:
        """Writes what changed in main memory since the last time."""
        self._inputs.send()

    def receive(self) -> None:
        """Reads the results of the step that ran last, and waits for them.

        The logits are read if there is no summary, or if something asked for those of the step before: whoever asks
        once asks again.
        """
        self._logits_are_here = self.summary is None or self._logits_were_asked_for
        self._logits_were_asked_for = False
        self._results.receive([name for name in self._results.values if name != "logits" or self._logits_are_here])

    def output(self) -> StepOutput:
        """The output of the step whose results were received. If there is a summary, the logits stay on the GPU."""
        if self.summary is not None:
            return StepOutput(None, self._buffers.hidden, SummarisedDistribution(self.summary, self.logits))
        logits = self._buffers.logits
        return StepOutput(logits, self._buffers.hidden, Distribution(logits[0], self._sums))

    def logits(self) -> np.ndarray:
        """Logits of the step that ran last, float32 [vocab]. Raises DeviceError if they cannot be fetched."""
        self._logits_were_asked_for = True
        if not self._logits_are_here:
            self._memory.fetch(self._results, ["logits"])
            self._logits_are_here = True
        return np.asarray(self._results.arrays["logits"][0])

    def bind_results(self, binding: ort.IOBinding) -> None:
        """Binds the results to a graph's outputs."""
        for name, value in self._results.values.items():
            binding.bind_ortvalue_output(name, value)

    def pretend(self, length: int) -> None:
        """Sets the lengths as if the cache held `length` tokens, for a trial run."""
        arrays = self._inputs.arrays
        arrays["past_length"][0], arrays["total_length"][0] = length, length + 1
        self.send()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """A context that restores the inputs at its end, for trial runs."""
        before = {name: array.copy() for name, array in self._inputs.arrays.items()}
        try:
            yield
        finally:
            for name, array in self._inputs.arrays.items():
                array[:] = before[name]

    def all_results(self) -> dict[str, np.ndarray]:
        """Copies of all results of the step that ran last."""
        self._results.receive(list(self._results.values))
        return {name: array.copy() for name, array in self._results.arrays.items()}
