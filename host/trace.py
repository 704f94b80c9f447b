"""Loads a model and exports it as a graph of ATen operations whose batch may have any size."""

import copy
import importlib
import inspect
import io
import json
import logging
import re
import sys
import traceback
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .errors import CelosiaError, UnsupportedError

__all__ = ["example_inputs", "fixed_batch", "input_count", "load_exported", "load_model", "trace"]

logger = logging.getLogger(__name__)

#: What a `.pt2` archive may hold without being trusted; every `.pt` among it is loaded with `weights_only=True` first.
_PLAIN_ENTRIES = re.compile(r"[^/]+/(data/(weights/(weight_\d+|\w+_weights_config\.json)|constants/(tensor_\d+|\w+_constants_config\.json)|sample_inputs/\w+\.pt)"
                            r"|models/\w+\.json|archive_format|archive_version|version|byteorder|\.data/\w+|extra/[\w.]+)")
#: The words of a size expression; torch gives such strings to sympy, which evaluates them as Python.
_SIZE_WORDS = re.compile(r"[suz]\d+|Symbol|positive|nonnegative|negative|integer|True|False|Max|Min|FloorDiv|CeilDiv|CleanDiv|Mod|PythonMod|"
                         r"ModularIndexing|Integer|Add|Mul|Eq|Ne|And|Or|Not|TruncToInt|IntTrueDiv|oo|int_oo")

_EMPTY_WEIGHTS = "load weights made for this model"


def load_model(spec: str, weights: "str | Path | None" = None, trust: bool = False) -> "torch.nn.Module | torch.export.ExportedProgram":
    """A model by name: of the zoo, a `.pt2` file, or `module:factory`, whose code is run.

    `weights` is a safetensors file loaded into a zoo or factory model; `trust` permits pickled entries of a `.pt2`.
    Raises :exc:`CelosiaError` if there is no such model, it cannot be built, or the weights do not fit it.
    """
    if spec.endswith(".pt2"):
        if weights is not None:
            raise CelosiaError(f"{spec}: an exported model holds its weights already; leave out --weights {weights}")
        return load_exported(spec, trust=trust)
    if ":" in spec:
        model = _call_factory(spec)
    else:
        from ..models import zoo
        try:
            entry = zoo.get(spec)
        except ValueError as error:
            raise CelosiaError(f"{error}; or name a .pt2 file or module:factory") from None
        model = entry.build()
    if weights is not None:
        _load_weights(model, Path(weights))
    return model.eval()


def _call_factory(spec):
    module_name, _, factory_name = spec.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
        model = factory() if not isinstance(factory, torch.nn.Module) else factory
    except ImportError as error:
        raise CelosiaError(f"model {spec}: module {module_name!r} cannot be imported ({error}); run celosia where it can be") from None
    except AttributeError as error:
        raise CelosiaError(f"model {spec}: {error}; name a function of {module_name!r} that returns an nn.Module") from None
    except Exception as error:
        raise CelosiaError(f"model {spec}: {factory_name}() raised {type(error).__name__}: {_first_line(error)}; it must work without arguments") from None
    if not isinstance(model, torch.nn.Module):
        raise CelosiaError(f"model {spec}: {factory_name}() returned {type(model).__name__}; it must return an nn.Module")
    return model


def _load_weights(model, path):
    if not path.is_file():
        raise CelosiaError(f"weights {path}: no such file; give a .safetensors file")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CelosiaError(f"weights {path}: is truncated or no safetensors file ({error}); save it again with safetensors.torch.save_file") from None
    expected = model.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    surplus = [name for name in state if name not in expected]
    if missing or surplus:
        what = f"{missing[0]!r} is missing" if missing else f"{surplus[0]!r} is not in the model"
        raise CelosiaError(f"weights {path}: {what} ({len(missing)} missing, {len(surplus)} unknown); {_EMPTY_WEIGHTS}")
    for name, value in state.items():
        if value.shape != expected[name].shape:
            raise CelosiaError(f"weights {path}: {name} has shape {tuple(value.shape)}, the model's has {tuple(expected[name].shape)}; {_EMPTY_WEIGHTS}")
    model.load_state_dict(state, strict=False)


def load_exported(path: "str | Path", trust: bool = False) -> torch.export.ExportedProgram:
    """Read a `.pt2` file of `torch.export.save`. Raises :exc:`CelosiaError` if it is missing, damaged or, without `trust`, could run code."""
    path = Path(path)
    if not path.is_file():
        raise CelosiaError(f"{path}: no such file; write one with torch.export.save")
    try:
        if not trust and (reason := _distrust(path)):
            raise CelosiaError(f"{path}: {reason}, which could run any code; pass --trust if you trust its author")
        with _quiet("torch.export"):  # it logs a traceback before it raises
            program = torch.export.load(path)
    except CelosiaError:
        raise
    except Exception as error:
        raise CelosiaError(f"{path}: is damaged or was made by another version of torch ({_first_line(error)}); "
                           f"export it again with torch {torch.__version__}") from None
    if (batch := fixed_batch(program)) is not None:
        logger.warning("%s: was exported with a fixed batch of %d and runs with that batch only; export it with torch.export.Dim.AUTO for any batch", path, batch)
    return program


@contextmanager
def _quiet(name):
    """Nothing below an error is logged by the logger of that name."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _distrust(path):
    """Why a `.pt2` could run code while it is loaded, or None."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if not _PLAIN_ENTRIES.fullmatch(name):
                return f"holds {name!r}, which is pickled, compiled or unknown"
            if name.endswith(".pt"):
                try:
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
                except Exception:
                    return f"holds the pickled entry {name!r}"
            elif name.endswith("_config.json"):
                for key, entry in json.loads(archive.read(name))["config"].items():
                    if entry["use_pickle"]:
                        return f"stores {key!r} pickled"
            elif name.endswith(".json") and (text := _strange_size(json.loads(archive.read(name)))):
                return f"holds the size expression {text!r}"
    return None


def _strange_size(value):
    if isinstance(value, dict):
        text = value.get("expr_str")
        if isinstance(text, str) and not (re.fullmatch(r"[\w\s+\-*/(),<>=&|~']*", text) and all(map(_SIZE_WORDS.fullmatch, re.findall(r"[A-Za-z_]\w*", text)))):
            return text
        value = list(value.values())
    return next(filter(None, map(_strange_size, value)), None) if isinstance(value, list) else None


def fixed_batch(program: "torch.export.ExportedProgram | torch.fx.GraphModule") -> "int | None":
    """The batch size an exported model insists on, or None if any will do."""
    user_inputs = set(program.graph_signature.user_inputs) if isinstance(program, torch.export.ExportedProgram) else None
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, torch.Tensor) and value.dim() and (user_inputs is None or node.name in user_inputs):
            size = str(value.shape[0])  # a symbol, or a number torch still holds in a symbol's place
            return int(size) if size.isdigit() else None
    return None


def input_count(model: "torch.nn.Module | torch.export.ExportedProgram") -> int:
    """Feature maps a model takes: its forward's parameters without defaults."""
    if isinstance(model, torch.export.ExportedProgram):
        return len(model.graph_signature.user_inputs)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return max(1, sum(p.kind in kinds and p.default is p.empty for p in parameters))


def example_inputs(inputs: "tuple[torch.Tensor, ...]") -> "tuple[torch.Tensor, ...]":
    """Two images of each input: torch.export would take a batch of one for a constant."""
    return tuple(torch.cat([x, x])[:2].contiguous() for x in inputs)


def trace(model: "torch.nn.Module | torch.export.ExportedProgram", inputs: "tuple[torch.Tensor, ...]") -> torch.fx.GraphModule:
    """Export a model in evaluation mode for batches of any size (an exported one as it is).

    `inputs` is one batch, float32, for each argument (N, …). The model itself stays as it is.
    An attribute `title` is what errors call the model, instead of its class.
    Raises :exc:`CelosiaError` if the model does not accept them, :exc:`UnsupportedError` if it cannot be exported.
    """
    if isinstance(model, torch.export.ExportedProgram):
        values = {node.name: node.meta["val"] for node in model.graph.nodes if node.op == "placeholder"}
        for name, given in zip(model.graph_signature.user_inputs, inputs):
            if not all(str(size).isdigit() for size in values[name].shape[1:]):
                raise UnsupportedError(f"input {name} of the exported model has a dynamic size {tuple(map(str, values[name].shape[1:]))}; "
                                       "export it with a dynamic batch only, and images of the size it shall run with")
            if values[name].shape[1:] != given.shape[1:]:
                raise CelosiaError(f"input {name} of the exported model takes images of shape {tuple(values[name].shape[1:])}, not {tuple(given.shape[1:])}; "
                                   "calibrate with images of the exported size")
        return model.module(check_guards=False)
    if model.training or any(module.training for module in model.modules()):
        model = copy.deepcopy(model).eval()
    example = example_inputs(inputs)
    shapes = " and ".join(str(tuple(x.shape)) for x in example)
    name = getattr(model, "title", type(model).__name__)
    try:
        with torch.no_grad():
            model(*example)
    except Exception as error:
        raise CelosiaError(f"{name} does not accept a batch of shape {shapes}{_source_line(error)}: {_first_line(error)}; "
                           "check the images' size, channels and type") from None
    try:
        sizes = tuple({0: torch.export.Dim.AUTO} for _ in example)
        several = any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(model.forward).parameters.values())  # which then is one argument, a tuple
        program = torch.export.export(model, example, dynamic_shapes=(sizes,) if several else sizes)
    except Exception as error:
        raise UnsupportedError(f"{name} cannot be exported{_source_line(error)} ({_first_line(error)}); "
                               "remove control flow that depends on values, or offload the submodules that have none") from None
    module = program.module(check_guards=False)
    if (batch := fixed_batch(module)) is not None:
        raise UnsupportedError(f"{name}: its code fixes the batch to {batch}; use x.shape[0] or -1 where it reshapes")
    return module


def _first_line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _source_line(error):
    """Where in the user's code an error arose: the innermost frame outside of torch."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/torch/" not in frame.filename and frame.filename != __file__]
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
