"""A small interpreter that runs TensorFlow.js graph models as a differentiable torch module.

It knows the operators that MediaPipe's face nets need and refuses any other by name. Inside, pictures are (batch, c, h,
w); the graph's own layout (batch, h, w, c) matters only where a tensor is padded or reshaped.

The vendored files that it runs are byte-exact copies out of npm packages (see NOTICE). None is a pickle: each is a flat binary described
by a JSON manifest.
"""

import base64
import hashlib
import json
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from portraitkit.errors import WeightsError

# ---- the files: where they lie, what they must hash to, how TensorFlow.js packs them

FOLDER = Path(__file__).parent / "weights"

SHA256 = {
    "blazeface.bin": "dc9a97fdc50bc43216554bdd69aa3e7b9361a519ee7bdd996a2f69a98a6f9b72",
    "blazeface.json": "cd7bbfc078270572beb39f9e5ae67aadbd50b5e67cff37e6d4f6b3ea39312e5f",
    "face_recognition_model-weights_manifest.json": "cbaffa501b0b9275a12b63357a6843e7e30c054e1c9151e1a5f879b26e32986b",
    "face_recognition_model.bin": "b413e420d6840b2775fba32008db6f3cddb07d485967fb42cfcf379c16a8c589",
    "facemesh.bin": "3826da640b0a3021161605369ee6af293f75d518040355b960ec71a3390c1c0b",
    "facemesh.json": "b60ca26f404724f43bd2b1575761d8265180e1f053cc0731caa68462927309e7",
}


def read_weights(name: str, folder: Path = FOLDER) -> bytes:
    """Read one vendored file, a key of `SHA256`, and check its sha256.

    Raises:
        WeightsError: the file is missing, or its sha256 is not the recorded one.
    """
    path = folder / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}: the file belongs to portraitkit, reinstall it") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256[name]:
        raise WeightsError(f"{path}: sha256 is {digest[:12]}.., must be {SHA256[name][:12]}..: reinstall portraitkit")
    return data


def read_json(name: str) -> Any:
    """Read one vendored JSON file after checking its sha256, as `read_weights` does."""
    return json.loads(read_weights(name))


def unpack_weights(entries: list[dict[str, Any]], data: bytes) -> dict[str, Tensor]:
    """Unpack a TensorFlow.js weight file: tensors lie one after the other, each perhaps quantised.

    `entries` are the manifest's {"name", "shape", "dtype", "quantization"?}. The tensors are in TensorFlow's own layout (filters are HWIO):
    float32, or int32 where the manifest says so. WeightsError: the file is shorter or longer than its manifest says.
    """
    tensors, offset = {}, 0
    for entry in entries:
        quantisation = entry.get("quantization", {})
        stored = np.dtype(quantisation.get("dtype", entry["dtype"])).newbyteorder("<")
        count = prod(entry["shape"])
        if offset + count * stored.itemsize > len(data):
            raise WeightsError(f"weights end at byte {len(data)}, inside {entry['name']}: reinstall portraitkit")
        values = np.frombuffer(data, stored, count, offset).reshape(entry["shape"])
        offset += values.nbytes
        if "scale" in quantisation:
            values = values.astype(np.float64) * quantisation["scale"] + quantisation["min"]
        target = np.int32 if entry["dtype"] == "int32" else np.float32
        tensors[entry["name"]] = torch.from_numpy(values.astype(target))
    if offset != len(data):
        raise WeightsError(f"weights hold {len(data)} bytes, their manifest describes {offset}: reinstall portraitkit")
    return tensors


# ---- the interpreter

KNOWN = {
    "AddV2", "Const", "DepthwiseConv2dNative", "Identity", "MaxPool", "Pad", "Placeholder", "Prelu", "Relu", "Reshape",
    "Sigmoid", "_FusedConv2D",
}  # fmt: skip
SAME = base64.b64encode(b"SAME").decode()


def pad_same(x: Float[Tensor, "batch c h w"], kernel: tuple[int, int], stride: int, value: float = 0.0) -> Tensor:
    """Pad as TensorFlow's SAME does: ceil(size / stride) outputs, the odd pixel at the bottom and the right."""
    total_h, total_w = (max((-(-size // stride) - 1) * stride + k - size, 0) for size, k in zip(x.shape[2:], kernel, strict=True))
    if total_h == total_w == 0:
        return x
    return F.pad(x, (total_w // 2, total_w - total_w // 2, total_h // 2, total_h - total_h // 2), value=value)


class GraphModel(nn.Module):
    """One TensorFlow.js graph model with one picture as its input; `<name>.json` holds the graph, `<name>.bin` the weights.
    WeightsError: a file is missing or damaged, or the graph uses an operator that is not known here."""

    def __init__(self, name: str) -> None:
        super().__init__()
        model = read_json(f"{name}.json")
        constants = unpack_weights(model["weightsManifest"][0]["weights"], read_weights(f"{name}.bin"))
        nodes = model["modelTopology"]["node"]
        if unknown := sorted({node["op"] for node in nodes} - KNOWN):
            raise WeightsError(f"{name}.json uses unknown operators {', '.join(unknown)}: known are {', '.join(sorted(KNOWN))}")
        pending = {node["name"]: node for node in nodes if node["op"] != "Const"}
        for node in pending.values():  # without output numbers such as `:0`
            node["input"] = [name.split(":")[0] for name in node.get("input") or []]
        self.plan: list[dict[str, Any]] = []  # each node after its inputs
        while pending:
            ready = [node for node in pending.values() if not any(name in pending for name in node["input"])]
            self.plan += ready
            for node in ready:
                del pending[node["name"]]
        self.outputs = [node["name"] for node in self.plan if node["op"] == "Identity"]
        self.needed_last = {name: node["name"] for node in self.plan for name in node["input"]}  # what a value's last reader is
        self.shapes = {key: value.tolist() for key, value in constants.items() if value.dtype == torch.int32}
        self.keys = {key: f"weight_{index}" for index, key in enumerate(constants) if key not in self.shapes}
        depthwise = {node["input"][1] for node in nodes if node["op"] == "DepthwiseConv2dNative"}
        for key, buffer in self.keys.items():
            value = constants[key]
            if value.dim() == 4 and key in depthwise:  # (h, w, channel, multiplier) -> (channel * multiplier, 1, h, w)
                value = value.permute(2, 3, 0, 1).flatten(0, 1)[:, None]
            elif value.dim() == 4:
                value = value.permute(3, 2, 0, 1)
            self.register_buffer(buffer, value.contiguous())

    def weight(self, name: str) -> Tensor:
        """The constant that the graph calls `name`, in torch's layout."""
        return self.get_buffer(self.keys[name])

    def forward(self, picture: Float[Tensor, "batch 3 h w"]) -> dict[str, Float[Tensor, "batch ..."]]:
        """Run the graph in float32, whatever autocast says, on pictures in the range that the model was trained on; returns the outputs by
        the graph's own names, in its own layout."""
        values: dict[str, Tensor] = {}
        with torch.autocast(picture.device.type, enabled=False):
            for node in self.plan:
                names = node["input"]
                if node["op"] == "Placeholder":
                    values[node["name"]] = picture.float()
                else:
                    values[node["name"]] = self._step(node, values[names[0]], names, values)
                for name in names:
                    if name in values and self.needed_last[name] == node["name"]:
                        del values[name]
        return {name: values[name] for name in self.outputs}

    def _step(self, node: dict[str, Any], x: Tensor, names: list[str], values: dict[str, Tensor]) -> Tensor:
        match node["op"]:
            case "_FusedConv2D":
                weight, bias = self.weight(names[1]), self.weight(names[2])
                stride = _stride(node)
                if node["attr"]["padding"]["s"] == SAME:
                    x = pad_same(x, (weight.shape[2], weight.shape[3]), stride)
                x = F.conv2d(x, weight, bias, stride)
                fused = [base64.b64decode(name) for name in node["attr"]["fused_ops"]["list"]["s"]]
                if fused not in ([b"BiasAdd"], [b"BiasAdd", b"Relu"], [b"BiasAdd", b"Prelu"]):
                    raise WeightsError(f"{node['name']} fuses {fused}: known are BiasAdd, then Relu or Prelu")
                return F.relu(x) if fused[1:] == [b"Relu"] else F.prelu(x, self.weight(names[3]).flatten()) if fused[1:] else x
            case "DepthwiseConv2dNative":
                weight = self.weight(names[1])
                stride, same = _stride(node), node["attr"]["padding"]["s"] == SAME
                x = pad_same(x, (weight.shape[2], weight.shape[3]), stride) if same else x
                return F.conv2d(x, weight, stride=stride, groups=x.shape[1])
            case "AddV2":
                return x + values[names[1]]
            case "Relu":
                return F.relu(x)
            case "Prelu":
                return F.prelu(x, self.weight(names[1]).flatten())
            case "Sigmoid":
                return torch.sigmoid(x)
            case "MaxPool":
                size, stride = int(node["attr"]["ksize"]["list"]["i"][1]), _stride(node)
                if node["attr"]["padding"]["s"] == SAME:
                    x = pad_same(x, (size, size), stride, -torch.inf)
                return F.max_pool2d(x, size, stride)
            case "Pad":
                _, rows, columns, channels = self.shapes[names[1]]
                return F.pad(x, (*columns, *rows, *channels))
            case "Reshape":  # the first axis is the batch, whatever number the graph was exported with
                return x.permute(0, 2, 3, 1).reshape(x.shape[0], *self.shapes[names[1]][1:])
            case _:
                return x


@cache
def load_graph(name: str, device: torch.device) -> GraphModel:
    """The vendored model `name` on a device, loaded once."""
    with torch.inference_mode(False):  # else a first call in inference mode would rule out gradients for ever
        return GraphModel(name).eval().to(device)


def _stride(node: dict[str, Any]) -> int:
    return int(node["attr"]["strides"]["list"]["i"][1])
