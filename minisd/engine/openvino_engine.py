"""OpenVINO runs the networks of a model instead of PyTorch. This is faster on a CPU.

Before a network runs for the first time, PyTorch records its operations on a small example
(torch.jit.trace). OpenVINO then compiles this graph for the processor and for the sizes of the
inputs. The graph contains the adapters that change layers: LoRAs, new words and hypernetworks. So
the network is compiled again if one of them changes.
"""

import sys
import threading
import warnings
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from minisd.fast import all_hooks, is_traced, needs_gradient, versions

FOLDER = Path("~/.cache/minisd/openvino")  # compiled networks, so that the next start is faster
MOST_STORED = 20 * 10**9  # of all compiled networks together. SD 1.5 in float32 takes 4 GB
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
SMALLEST_LATENT, SMALLEST_PICTURE = 2, 32  # the sides of the example for recording


class OpenVINO:
    """Runs networks with OpenVINO. run(network, *inputs) returns about what the network returns.

    dtype, device: of the model, because OpenVINO computes with the same precision

    Raises ValueError if openvino is not installed, or if it cannot use the dtype or the device.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device | str):
        if dtype not in PRECISIONS:
            name = str(dtype).removeprefix("torch.")
            raise ValueError(f"OpenVINO computes with float32 or bfloat16, not {name}. Choose one.")
        if torch.device(device).type != "cpu":
            raise ValueError(f"OpenVINO runs on the CPU, not on {device}. Leave out the device.")
        self.openvino = import_openvino()
        self.core = self.openvino.Core()
        units = "BF16" in self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = PRECISIONS[dtype] if units else "f32"
        self.compiled: WeakKeyDictionary[nn.Module, tuple[tuple, Any]] = WeakKeyDictionary()
        self.lock = threading.Lock()  # a compiled network runs once at a time

    def run(self, network: nn.Module, *inputs: Any) -> Any:
        """Run a network. The inputs and the result are those of network(*inputs).

        PyTorch runs the network if OpenVINO cannot: if a hook reads tensors inside the network, or
        if a gradient is needed.
        """
        if reason := reason_to_step_aside(network, inputs):
            warnings.warn(f"OpenVINO steps aside: {reason}. PyTorch runs.", stacklevel=2)
            return network(*inputs)
        # ControlNets pass on their corrections in a hook
        for hook in tuple(network._forward_pre_hooks.values()):
            inputs, _ = hook(network, inputs, {})
        with self.lock:
            compiled, returned = self.compile_once(network, inputs)
            arrays = [contiguous_array(tensor) for tensor in input_tensors(inputs)]
            results = [torch.from_numpy(array) for array in compiled(arrays).to_tuple()]
        dtype = next(network.parameters()).dtype
        return tree_unflatten([result.to(dtype) for result in results], returned)

    def compile_once(self, network: nn.Module, inputs: tuple) -> tuple[Any, Any]:
        """The compiled network for these inputs, and how the tensors of its result are nested."""
        state = dependencies(network, inputs)
        known = self.compiled.get(network)
        if known is None or known[0] != state:
            self.compiled.pop(network, None)  # its memory is free before the new one needs it
            known = state, self.compile(network, inputs)
            self.compiled[network] = known
        return known[1]

    def compile(self, network: nn.Module, inputs: tuple) -> tuple[Any, Any]:
        """Record the network's operations, and compile them for the sizes of these inputs."""
        function = TensorFunction(network, inputs)
        example = small_example(input_tensors(inputs))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the recording warns that it holds for one clip_skip
            recorded = torch.jit.trace(function, example, check_trace=False)
            graph = self.openvino.convert_model(recorded, example_input=example)
        sizes = zip(graph.inputs, input_tensors(inputs), strict=True)
        graph.reshape({port: self.openvino.PartialShape([*one.shape]) for port, one in sizes})
        settings = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        folder = writable_folder(self.precision)
        settings |= {"CACHE_DIR": str(folder)} if folder else {}
        with FileLock(folder / "lock") if folder else nullcontext():
            compiled = self.core.compile_model(graph, "CPU", settings)
            if folder:
                delete_oldest(folder, MOST_STORED)
        return compiled, function.returned


class TensorFunction(nn.Module):
    """A network as a function from tensors to tensors, as torch.jit.trace and OpenVINO need it.

    All inputs and results are float32 or integers. Other inputs, such as clip_skip, are fixed.

    returned: how the tensors of the result are nested
    """

    def __init__(self, network: nn.Module, inputs: tuple):
        super().__init__()
        self.network = network
        self.leaves, self.nested = tree_flatten(inputs)
        self.returned: Any = None

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        leaves = [
            next(given).to(leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves
        ]
        # forward, because run() has called the network's own hooks
        result = self.network.forward(*tree_unflatten(leaves, self.nested))
        results, self.returned = tree_flatten(result)
        return tuple(one.float() for one in results)


def make_engine(name: str, dtype: torch.dtype, device: torch.device | str) -> OpenVINO:
    """Create the engine of this name. Raises ValueError if there is no such engine."""
    if name != "openvino":
        raise ValueError(f'There is no engine {name!r}. Give "openvino", or None for PyTorch.')
    return OpenVINO(dtype, device)


def import_openvino() -> Any:
    """Import openvino. Raises ValueError if it is not installed.

    openvino-telemetry would report each import to Intel, so this process does not load it.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
    try:
        import openvino  # pyright: ignore[reportMissingImports] - it is optional
    except ImportError as error:
        way = "Run `pip install openvino`, or use PyTorch (--engine pytorch, engine=None)"
        raise ValueError(f"openvino is not installed. {way}.") from error
    return openvino


def reason_to_step_aside(network: nn.Module, inputs: tuple) -> str:
    """Why PyTorch has to run the network, or "" if OpenVINO can run it."""
    if is_traced(network):
        return "a trace or another hook reads tensors inside the network"
    if needs_gradient(input_tensors(inputs)):
        return "a gradient is needed"
    return ""


def dependencies(network: nn.Module, inputs: tuple) -> tuple:
    """Everything that a compiled network depends on. It is compiled again if this changes."""
    weights = versions(*network.parameters())
    inside = [hook for module in network.children() for hook in all_hooks(module)]
    leaves = tree_flatten(inputs)[0]
    sizes = [(one.shape, one.dtype) if isinstance(one, Tensor) else one for one in leaves]
    return weights, inside, sizes, torch.get_num_threads()


def input_tensors(inputs: tuple) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(inputs)[0] if isinstance(leaf, Tensor)]


def small_example(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """One sample of each tensor, for the recording. Pictures and latents become smaller.

    All heights and widths are divided by the same power of two, because a ControlNet's corrections
    must fit the latent. The recording holds for all sizes.
    """
    least = {3: SMALLEST_PICTURE}  # a picture has 3 channels
    sides = [
        (side, least.get(one.shape[1], SMALLEST_LATENT))
        for one in tensors
        if one.ndim == 4
        for side in one.shape[2:]
    ]
    factor = 1
    while sides and all(side % (2 * factor) == 0 and side >= 2 * factor * n for side, n in sides):
        factor = 2 * factor
    small = (
        one[:1, :, : one.shape[2] // factor, : one.shape[3] // factor] if one.ndim == 4 else one[:1]
        for one in tensors
    )
    return tuple(to_float32(one).contiguous() for one in small)


def to_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32. Integers stay as they are."""
    return tensor.float() if tensor.is_floating_point() else tensor


def contiguous_array(tensor: Tensor) -> Any:
    return to_float32(tensor.detach()).contiguous().numpy()


def writable_folder(precision: str) -> Path | None:
    """The folder for compiled networks. None if it cannot be made: nothing is stored then.

    Each precision has its own folder, because OpenVINO 2026.4 looks for a network that was compiled
    before by its graph alone. In bf16, it would load the network of f32, which then returns NaN.
    """
    with suppress(OSError, RuntimeError):  # a RuntimeError: this user has no home folder
        folder = FOLDER.expanduser() / precision
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    return None


def delete_oldest(folder: Path, most: int) -> None:
    """Delete the oldest compiled networks until the others have at most this many bytes."""
    newest_first = sorted(folder.glob("*.blob"), key=lambda file: -file.stat().st_mtime)
    total = 0
    for file in newest_first:
        total = total + file.stat().st_size
        if total > most:
            file.unlink(missing_ok=True)
