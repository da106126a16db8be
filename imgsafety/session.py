"""Pixels to `Scores`: the only user of onnxruntime.

In: `uint8 (batch, side, side, 3)` RGB. Out: one `Scores` per row. The graph casts, normalises, applies
temperatures and softmax itself. What a reader would get wrong: a damaged model does not fail, it answers
NaN, and `nan >= threshold` is false, so everything would pass. `Session` refuses such answers.
"""

import base64
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imgsafety.errors import ModelError, SetupError
from imgsafety.result import Plane, Rgb, Scores
from imgsafety.spec import FIRST_KEY, METADATA_KEY, Head, ModelSpec, from_json, shipped_file

MODEL_FILE = "imgsafety-v1.onnx"
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# Left alone, cuDNN searches for seconds whenever a batch has a size that it has not met.
OPTIONS = {"cuda": {"cudnn_conv_algo_search": "HEURISTIC"}}
DEVICE = 0  # number of the GPU that the runtime takes; CUDA_VISIBLE_DEVICES says which that is
MAP_SUFFIX = "_map"
PEOPLE_MAP = "people_map"  # where somebody is, which a model may tell beside its heads
AGE_INTERVAL = (0.05, 0.95)
ROUNDING = 1e-3  # by which a sum of probabilities may miss 1, and a chance exceed it: the runtime rounds


def shipped_model() -> Path:
    """Return the path of the model that came with the package (wheel, editable install or checkout)."""
    found = shipped_file(MODEL_FILE)
    if found is None:
        raise ModelError(f"{MODEL_FILE} is not beside the package; reinstall imgsafety or name a model file")
    return found


class Session:
    """One loaded model. Safe to share between threads.

    model: path of an `.onnx` file with a spec inside. A file named like it plus `.sha256` beside it must
    match its bytes. threads: CPU threads for one call. Raises `ModelError` for a missing, altered or
    unfit file and `SetupError` for a provider that is not there.
    """

    def __init__(self, model: str | os.PathLike[str] | None = None, provider: str = "cpu", threads: int = 1) -> None:
        self.path = Path(model) if model is not None else shipped_model()
        data = _read_model(self.path)
        self.sha256 = hashlib.sha256(data).hexdigest()
        _check_sha256(self.path, self.sha256)
        self._runtime = _open_runtime(data, self.path, provider, threads)
        self.provider, self._threads = provider, threads
        properties = self._runtime.get_modelmeta().custom_metadata_map
        self.spec = _read_spec(properties, self.path)
        one_side = properties.get(FIRST_KEY) or not self.spec.first_size
        sides = [self.spec.size] if one_side else [self.spec.size, self.spec.first_size]
        _check_graph(self._runtime, self.spec, sides, self.path)
        outputs = {output.name for output in self._runtime.get_outputs()}
        self.has_maps = all(head.name + MAP_SUFFIX in outputs for head in self.spec.heads)
        self.finds_people = PEOPLE_MAP in outputs

    @cached_property
    def _first_runtime(self) -> Any:
        """What takes first looks: where the file has a model of its own for them, that, made when it is asked for.

        Most scanners have no cascade, and need not wait for it.
        """
        first = self._runtime.get_modelmeta().custom_metadata_map.get(FIRST_KEY)  # megabytes that the runtime keeps already
        if not first:
            return self._runtime
        try:
            data = base64.b64decode(first, validate=True)
        except ValueError as problem:
            raise ModelError(f"{self.path}: its model for first looks cannot be read: {problem}") from problem
        runtime = _open_runtime(data, self.path, self.provider, self._threads)
        _check_graph(runtime, self.spec, [self.spec.first_size], self.path)
        return runtime

    def run(self, pixels: Rgb, maps: bool | Collection[str] = False) -> list[Scores]:
        """Judge `uint8 (batch, side, side, 3)`; one `Scores` per row, in order. side: `spec.size`, or `spec.first_size`.

        pixels: an array; or a tensor of torch, which stays on its GPU if the model runs on that one too.
        maps: also fill `Scores.maps`, of all heads or of those named, and `Scores.people` if the model tells; raises `ModelError`
        when it was exported without maps. Raises `ModelError` when its answer is not a finite distribution, or its map of people
        leaves [0, 1].
        """
        size, first_size = self.spec.size, self.spec.first_size
        sides = (size, first_size) if first_size else (size,)
        shape = tuple(pixels.shape)
        if not str(pixels.dtype).endswith("uint8") or len(shape) != 4 or shape[1:] not in [(side, side, 3) for side in sides]:
            raise ModelError(f"pixels are {pixels.dtype} {shape}, not uint8 (batch, {size}, {size}, 3)")
        if maps and not self.has_maps:
            raise ModelError(f"{self.path}: the model has no map outputs; export it again")
        names = [head.name for head in self.spec.heads]
        if maps:
            names += [name + MAP_SUFFIX for name in names if maps is True or name in maps]
            names += [PEOPLE_MAP] if self.finds_people else []
        runtime = self._runtime if shape[1] == size else self._first_runtime
        try:
            answers = self._answer(runtime, names, pixels)
        except Exception as problem:  # onnxruntime raises unrelated classes of its own, also on lack of memory
            raise ModelError(f"{self.path}: inference failed: {problem}") from problem
        outputs = dict(zip(names, answers, strict=True))
        for head in self.spec.heads:
            _check_distribution(head, outputs[head.name], len(pixels))
        if PEOPLE_MAP in outputs:
            _check_chances(outputs[PEOPLE_MAP], len(pixels))
        return read_out(self.spec, outputs)

    def _answer(self, runtime: Any, names: list[str], pixels: Rgb) -> list[npt.NDArray[Any]]:
        answers: list[npt.NDArray[Any]]
        name = runtime.get_inputs()[0].name
        if isinstance(pixels, np.ndarray):
            answers = runtime.run(names, {name: pixels})
            return answers
        if self.provider == "cpu" or not pixels.is_cuda or pixels.device.index != DEVICE:
            return self._answer(runtime, names, pixels.cpu().numpy())
        import torch  # whoever has a tensor has it

        pixels = pixels.contiguous()
        torch.cuda.current_stream(pixels.device).synchronize()  # the runtime has a stream of its own, which would not wait
        binding = runtime.io_binding()
        binding.bind_input(name, "cuda", DEVICE, np.uint8, tuple(pixels.shape), pixels.data_ptr())
        for output in names:
            binding.bind_output(output)  # in the host's memory
        runtime.run_with_iobinding(binding)
        answers = binding.copy_outputs_to_cpu()
        return answers


def _read_model(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as problem:  # ValueError: a NUL byte in the name
        raise ModelError(f"model file {path} cannot be read: {getattr(problem, 'strerror', None) or problem}") from problem


def _check_sha256(path: Path, actual: str) -> None:
    sidecar = path.with_name(path.name + ".sha256")
    if not sidecar.is_file():
        return
    promised = sidecar.read_text(errors="replace").split()
    if not promised or promised[0] != actual:
        raise ModelError(f"{path}: SHA-256 is {actual}, {sidecar.name} promises another; the file was altered")


def _open_runtime(data: bytes, path: Path, provider: str, threads: int) -> Any:
    import onnxruntime  # imported here: it takes longer than the rest of the package together

    onnxruntime.disable_telemetry_events()  # where somebody else loaded it before this package could tell it

    if provider not in PROVIDERS:
        raise SetupError(f"provider {provider!r} is not one of {', '.join(PROVIDERS)}")
    wanted = PROVIDERS[provider]
    if wanted not in onnxruntime.get_available_providers():
        raise SetupError(
            f"provider {provider!r} is not in this onnxruntime; "
            "replace it: pip uninstall onnxruntime && pip install onnxruntime-gpu"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        runtime = onnxruntime.InferenceSession(data, options, providers=[(wanted, OPTIONS.get(provider, {}))])
    except Exception as problem:  # onnxruntime raises unrelated classes of its own
        raise ModelError(f"{path} is not a model that onnxruntime can load: {problem}") from problem
    if wanted not in runtime.get_providers():
        raise SetupError(f"onnxruntime fell back from {provider!r} to {runtime.get_providers()}; check the driver")
    return runtime


def _read_spec(properties: Mapping[str, str], path: Path) -> ModelSpec:
    text = properties.get(METADATA_KEY)
    if text is None:
        raise ModelError(f"{path} has no imgsafety spec inside; export it with training.export")
    return from_json(text)


def _check_graph(runtime: Any, spec: ModelSpec, sides: list[int], path: Path) -> None:
    """Hold a graph against the spec and the sides that it has to take."""
    inputs = runtime.get_inputs()
    found = [(entry.type, entry.shape) for entry in inputs]
    # Names instead of numbers: the graph takes any side.
    shapes = [[side if isinstance(side, int) else "any" for side in shape[1:]] for _, shape in found]
    fitting = [["any", "any", 3]] if len(sides) > 1 else [["any", "any", 3], [*sides, *sides, 3]]
    if len(inputs) != 1 or inputs[0].type != "tensor(uint8)" or shapes[0] not in fitting:
        wanted = " or ".join(f"(batch, {side}, {side}, 3)" for side in sides)
        raise ModelError(f"{path}: input is {found}, not uint8 {wanted}")
    outputs = {output.name: output.shape for output in runtime.get_outputs()}
    for head in spec.heads:
        if outputs.get(head.name, [0])[-1] != len(head.labels):
            raise ModelError(f"{path}: no output {head.name!r} with {len(head.labels)} labels as its spec says")


def _check_distribution(head: Head, answer: npt.NDArray[np.float32], rows: int) -> None:
    if answer.shape != (rows, len(head.labels)):
        raise ModelError(f"head {head.name!r} answered shape {answer.shape}, not ({rows}, {len(head.labels)})")
    # Written so that NaN fails it: every comparison with NaN is false.
    if not (np.all(answer >= 0) and np.all(np.abs(answer.sum(axis=1) - 1) < ROUNDING)):
        raise ModelError(f"head {head.name!r} did not answer a finite probability distribution")


def _check_chances(answer: npt.NDArray[np.float32], rows: int) -> None:
    if answer.ndim != 3 or len(answer) != rows or not np.all((answer > -ROUNDING) & (answer < 1 + ROUNDING)):  # NaN fails too
        raise ModelError(f"the map of people is not finite chances of shape ({rows}, rows, columns)")


# Short names for the scores that policies and results use most.
ALIASES = {
    "attire.minimal": "minimal_attire",
    "attire.at_least.revealing": "exposed",
    "age.under_18": "minor",
    "age.under_25": "under_25",
}


@cache
def head_of(name: str) -> str:
    """Return the name of the head that a score is of."""
    return next((full for full, alias in ALIASES.items() if alias == name), name).split(".")[0]


def score_names(spec: ModelSpec) -> frozenset[str]:
    """Return every score name that a policy may use with this model."""
    return frozenset(name for head in spec.heads for name in _sums(head)[0])


@cache  # a pure function of a frozen head, asked once per picture
def _sums(head: Head) -> tuple[tuple[str, ...], npt.NDArray[np.float64]]:
    """The names of a head's scores, and each as a row of weights over labels: a score is a sum of probabilities."""
    count = len(head.labels)
    up_to, alone = np.tri(count), np.eye(count)
    if head.kind == "ages":
        sums = {f"{head.name}.under_{edge:g}": row for edge, row in zip(head.edges[1:], up_to, strict=True)}
    else:
        sums = {f"{head.name}.{label}": row for label, row in zip(head.labels, alone, strict=True)}
        sums |= {f"{head.name}.at_least.{label}": row for label, row in zip(head.labels, up_to.T, strict=True)}
    sums |= {alias: sums[name] for name, alias in ALIASES.items() if name in sums}
    return tuple(sums), np.stack(list(sums.values()))


def read_out(spec: ModelSpec, outputs: Mapping[str, npt.NDArray[np.floating[Any]]]) -> list[Scores]:
    """Make `Scores` of each row of the heads' probabilities: the only definition of what a score means.

    outputs: for every head floats `(batch, labels)`, for maps `NAME_map (batch, labels, rows, columns)` and `people_map (batch,
    rows, columns)`.
    """
    rows = range(len(outputs[spec.heads[0].name]))
    heads: list[dict[str, dict[str, float]]] = [{} for _ in rows]
    named: list[dict[str, float]] = [{} for _ in rows]
    maps: list[dict[str, Plane]] = [{} for _ in rows]
    ages: list[tuple[float, float, float]] | None = None
    for head in spec.heads:
        probabilities = np.clip(outputs[head.name].astype(np.float64), 0.0, 1.0)
        for row, (labels, sums) in enumerate(_read_head(head, probabilities)):
            heads[row][head.name] = labels
            named[row] |= sums
        if head.kind == "ages":
            ages = _ages(head, probabilities)
        if head.name + MAP_SUFFIX in outputs:
            names, weights = _sums(head)
            evidence = outputs[head.name + MAP_SUFFIX]
            planes = (weights @ evidence.reshape(*evidence.shape[:2], -1)).reshape(len(rows), len(names), *evidence.shape[2:])
            for row, grids in enumerate(planes):
                maps[row] |= zip(names, grids, strict=True)
    people = outputs.get(PEOPLE_MAP)
    found = []
    for row in rows:
        nobody = named[row].get("attire.no_person", 0.0) >= 0.5  # an age needs somebody who has it
        expected, low, high = ages[row] if ages and not nobody else (None, None, None)
        found.append(Scores(heads[row], named[row], expected, low, high, maps[row], None if people is None else people[row]))
    return found


def with_head(scores: Scores, name: str, probabilities: npt.NDArray[np.float64]) -> Scores:
    """The same opinion with other probabilities `(labels,)` of a head of classes, and the scores that they sum to."""
    ((labels, named),) = _read_head(Head(name, "classes", tuple(scores.heads[name])), probabilities[np.newaxis])
    return replace(scores, heads={**scores.heads, name: labels}, named={**scores.named, **named})


def _read_head(head: Head, probabilities: npt.NDArray[np.float64]) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Of each row of `(batch, labels)`, the probability of each label, and every score of the head."""
    names, weights = _sums(head)
    # A product for each row: one of matrices may round a row otherwise beside other rows.
    sums = np.minimum((weights @ probabilities[..., np.newaxis])[..., 0], 1.0)
    for alone, summed in zip(probabilities.tolist(), sums.tolist(), strict=True):
        yield dict(zip(head.labels, alone, strict=True)), dict(zip(names, summed, strict=True))


def _ages(head: Head, probabilities: npt.NDArray[np.float64]) -> list[tuple[float, float, float]]:
    """Of each row, expectation, low end and high end in years; quantiles are interpolated inside a bin."""
    totals = probabilities.sum(axis=1, keepdims=True)
    shares = probabilities / totals
    cumulative = np.concatenate([np.zeros_like(totals), np.cumsum(shares, axis=1)], axis=1)
    ends = [np.interp(AGE_INTERVAL, row, head.edges).tolist() for row in cumulative]
    expected = (shares * head.middles).sum(axis=1).tolist()
    return [(age, low, high) for age, (low, high) in zip(expected, ends, strict=True)]
