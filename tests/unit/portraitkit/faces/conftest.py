"""The bundled portraits with their faces and meshes, computed once."""

import pytest
from torch import Tensor

from portraitkit.faces.detect import Face, detect_faces
from portraitkit.faces.mesh import face_mesh
from portraitkit.faces.portraits import bundled_portraits


@pytest.fixture(scope="session")
def portraits() -> dict[str, Tensor]:
    return bundled_portraits()


@pytest.fixture(scope="session")
def faces(portraits: dict[str, Tensor]) -> dict[str, Face]:
    return {name: detect_faces(pixels)[0] for name, pixels in portraits.items()}


@pytest.fixture(scope="session")
def meshes(portraits: dict[str, Tensor], faces: dict[str, Face]) -> dict[str, Tensor]:
    return {name: face_mesh(pixels, faces[name]) for name, pixels in portraits.items()}
