"""ONNX nets for tests, written on the spot."""

import numpy as np
import pytest


def write_arcface(path, shape=(None, 3, 112, 112), width=512):
    """A net of ArcFace's shape: block means, then a random matrix. For wiring only, never for scores."""
    onnx = pytest.importorskip("onnx", reason="writing a small ONNX net needs the onnx package")
    from onnx import TensorProto, helper, numpy_helper

    blocks = 3 * (shape[2] // 16) * (shape[3] // 16)
    matrix = np.random.default_rng(0).standard_normal((blocks, width)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["input.1"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "matrix"], ["683"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("683", TensorProto.FLOAT, [shape[0], width])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return matrix
