"""Write a module as a graph of ONNX or OpenVINO, by transformers' exporters, and run such a file."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ALLMRecError
from ..part_sources import one_line

logger = logging.getLogger(__name__)

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
"""Runs a graph on named inputs and returns its named outputs."""


class GraphRuntime(ABC):
    """A format of graphs and the runtime that reads it.

    Attributes:
        format: Its name.
        suffix: Of the file that is opened.
    """

    format: str
    suffix: str

    @abstractmethod
    def _exporter(self) -> tuple[Any, Any]:
        """Return transformers' exporter and the class of its config."""

    @abstractmethod
    def open(self, path: Path) -> Run:
        """Return what runs the graph of a file, on the CPU."""

    def write(
        self, module: nn.Module, inputs: Mapping[str, Tensor], free: Mapping[str, Mapping[int, str]], path: Path
    ) -> dict[str, Any]:
        """Write a module as a graph and return what the record says of it: files, inputs and outputs.

        Args:
            module: Takes tensors by name and returns named tensors.
            inputs: Example inputs; no free dimension is 0 or 1 long.
            free: The dimensions of each input that may have any length, by their names.
            path: The file, without its suffix.

        Raises:
            ALLMRecError: when the module cannot be exported.
        """
        exporter, config = self._exporter()
        # Dim.AUTO takes over limits such as a table of positions; a dimension that it fixes is found below.
        shapes = {name: {place: torch.export.Dim.AUTO for place in free.get(name, {})} or None for name in inputs}
        file = path.with_name(f"{path.name}{self.suffix}")
        given = {name: value.clone() for name, value in inputs.items()}
        try:
            with _quiet():
                program, _ = exporter.export_program(module.eval(), dict(given), config(dynamic_shapes=shapes))
                exporter.save_program(program, file)
        except Exception as error:  # tracing raises what the traced code does not allow
            raise ALLMRecError(
                f"{path.name} cannot be exported to {self.format}: {type(error).__name__}: {one_line(error)[:300]}"
            ) from error
        run, outputs = self.open(file), {}
        for lengths in ({name: 1 for names in free.values() for name in names.values()}, {}):
            part = {name: _cut(value, free.get(name, {}), lengths) for name, value in inputs.items()}
            rows = len(next(iter(part.values())))
            told = f"{path.name} was exported to {self.format}, but not for any number of rows: of {rows}"
            try:
                outputs = run(part)
            except Exception as error:  # of the runtime: a graph that was traced for one length only
                raise ALLMRecError(f"{told} it makes {one_line(error)[:300]}") from error
            wrong = {name: value.shape for name, value in outputs.items() if value.shape[:1] != (rows,)}
            if wrong:
                raise ALLMRecError(f"{told} it makes outputs of the shapes {wrong}")
        return {
            "name": path.name,
            "file": file.name,
            "inputs": [_told(name, value.numpy(), free.get(name, {})) for name, value in inputs.items()],
            "outputs": [_told(name, value, {0: "batch"}) for name, value in outputs.items()],
        }


def _cut(value: Tensor, free: Mapping[int, str], lengths: Mapping[str, int]) -> np.ndarray:
    """Return the last places of an example input along its free dimensions: what is left-padded is real there."""
    array = value.numpy()
    for place, name in free.items():
        if name in lengths:
            array = array.take(range(array.shape[place] - lengths[name], array.shape[place]), axis=place)
    return np.ascontiguousarray(array)


def _told(name: str, value: np.ndarray, free: Mapping[int, str]) -> dict[str, Any]:
    shape = [free.get(place, size) for place, size in enumerate(value.shape)]
    return {"name": name, "shape": shape, "dtype": str(value.dtype)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters print and warn of out of standard output; it goes to the log."""
    printed, talkative = io.StringIO(), logging.getLogger("torch.onnx")
    level = talkative.level
    talkative.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        talkative.setLevel(level)
    logger.debug("%s", printed.getvalue())


class OnnxGraphs(GraphRuntime):
    """ONNX, run by ONNX Runtime."""

    format = "onnx"
    suffix = ".onnx"

    def _exporter(self) -> tuple[Any, Any]:
        from transformers.exporters import OnnxConfig, OnnxExporter

        return OnnxExporter(), OnnxConfig

    def open(self, path: Path) -> Run:
        """Return what runs the graph of a file."""
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))


@functools.cache
def _openvino_core() -> Any:
    """Return this process's only core.

    A core changes the stack of signal handlers, and puts back what it found when it goes: of two that go in the order
    in which they came (OpenVINO 2026.4), the second puts back the first one's, which is no longer there, and the next
    signal, such as Ctrl-C, ends the process with a segmentation fault.
    """
    import openvino

    return openvino.Core()


class OpenVINOGraphs(GraphRuntime):
    """OpenVINO's intermediate representation."""

    format = "openvino"
    suffix = ".xml"

    def _exporter(self) -> tuple[Any, Any]:
        from transformers.exporters import OpenVINOConfig, OpenVINOExporter

        return OpenVINOExporter(), OpenVINOConfig

    def open(self, path: Path) -> Run:
        """Return what runs the graph of a file."""
        compiled = _openvino_core().compile_model(str(path), "CPU")

        def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            found = compiled(dict(inputs))
            return {output.any_name: np.array(found[output]) for output in compiled.outputs}

        return run


RUNTIMES: dict[str, GraphRuntime] = {runtime.format: runtime for runtime in (OnnxGraphs(), OpenVINOGraphs())}
