"""ITK transform files: HDF5 composites and text files become the transforms of this package, in RAS+ millimetres.

ITK stores physical points in LPS+ and, as every transform here, maps points of the target to points of the source.
A composite applies its components from the last to the first.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from neurostorm_bids.errors import TransformUnreadable
from neurostorm_bids.space.grid import Grid
from neurostorm_bids.space.transforms import Chain, DisplacementField, Linear, Transform

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
TEXT_MAGIC = b"#Insight Transform File"
AGAIN = "Fetch or write it again"
LARGEST_TEXT = 64 * 1024**2  # bytes
LONGEST_NAME = 200  # bytes of an HDF5 string
LARGEST_FIELD = 450**3  # voxels, 1.1 GB; a file that declares more would exhaust the memory
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
COMPOSITE = "CompositeTransform"
FIELD = "DisplacementFieldTransform"


@dataclass(frozen=True)
class Component:
    """One transform of a file, as stored: ``read`` gives its parameters once their number was found right."""

    kind: str  # "AffineTransform"
    dimensions: tuple[int, int]
    fixed: np.ndarray
    n_parameters: int
    read: Callable[[type], np.ndarray]


def read_transform(path: Path) -> Transform:
    """The transform of an ITK file (.h5, .txt, .tfm): points of its target space to points of its source space.

    Raises
    ------
    TransformUnreadable
        For files that are missing, broken, of another format, or hold a transform that is not 3D, not linear
        and no displacement field.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(len(TEXT_MAGIC))
        if start.startswith(HDF5_MAGIC):
            with h5py.File(path, "r") as file:
                return _assembled(_hdf5_components(file, path), path)
        if start == TEXT_MAGIC:
            return _assembled(list(_text_components(path)), path)
    except (OSError, RuntimeError) as error:  # h5py raises either for a damaged file
        raise TransformUnreadable(f"the transform cannot be read ({error})", file=path, remedy=AGAIN) from None
    raise TransformUnreadable(
        "this is no ITK transform file", file=path, expected="an ITK .h5 composite, .txt or .tfm", remedy="Convert it"
    )


def _assembled(components: list[Component], path: Path) -> Transform:
    if components and components[0].kind == COMPOSITE:
        parts = components[1:]
    elif len(components) > 1:
        raise TransformUnreadable(
            f"the file lists {len(components)} transforms that are no composite (head motion, one a volume?)",
            file=path,
            expected="one transform, or one composite",
            remedy="Give the transform between the two spaces",
        )
    else:
        parts = components
    if not parts:
        raise TransformUnreadable("the file holds no transform", file=path, remedy=AGAIN)
    return Chain(tuple(_converted(part, path) for part in reversed(parts)))


def _converted(component: Component, path: Path) -> Transform:
    if component.dimensions != (3, 3):
        raise TransformUnreadable(
            f"{component.kind} maps {component.dimensions[0]}D points", file=path, expected="3D", remedy=AGAIN
        )
    if component.kind == FIELD:
        return _field(component, path)
    if component.kind not in LINEAR_KINDS:
        raise TransformUnreadable(
            f"{component.kind} is not supported",
            file=path,
            expected=f"{FIELD} or one of {', '.join(LINEAR_KINDS)}",
            remedy="Write it as a displacement field",
        )
    return _linear(component, path)


# --- HDF5 -------------------------------------------------------------------------------------------------------


def _hdf5_components(file: h5py.File, path: Path) -> list[Component]:
    try:
        group = _member(file, "TransformGroup", path)
        return [_hdf5_component(_member(group, name, path), path) for name in sorted(group, key=int)]
    except (AttributeError, KeyError, ValueError, TypeError) as error:
        raise TransformUnreadable(
            f"this HDF5 file is no ITK transform ({error})", file=path, remedy="Convert it, or fetch or write it again"
        ) from None


def _member(group: h5py.Group, name: str, path: Path) -> Any:
    """A member of a group that lies in the file itself: links and external storage could name any file."""
    if name in group and not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise _outside(name, path)
    member = group[name]
    if isinstance(member, h5py.Dataset) and (member.external or member.is_virtual):
        raise _outside(name, path)
    return member


def _outside(name: str, path: Path) -> TransformUnreadable:
    return TransformUnreadable(
        f"{name} is a link, or its values lie outside the file",
        file=path,
        expected="everything in the file itself",
        remedy="Write it again with ITK or ANTs",
    )


def _hdf5_component(group: h5py.Group, path: Path) -> Component:
    stated = _member(group, "TransformType", path)
    if stated.size != 1 or stated.dtype.itemsize > LONGEST_NAME:
        raise TypeError("TransformType is no name")
    name = np.ravel(stated[()])[0]
    kind, dimensions = _kind(name.decode() if isinstance(name, bytes) else str(name), path)
    if kind == COMPOSITE:
        return Component(kind, dimensions, np.empty(0), 0, np.empty)
    # ITK before 5.0, and ANTs with it, wrote "Tranform"
    fixed = _either(group, path, "TransformFixedParameters", "TranformFixedParameters")
    parameters = _either(group, path, "TransformParameters", "TranformParameters")
    n_fixed = 0 if fixed.shape is None else int(np.prod(fixed.shape))
    n_parameters = 0 if parameters.shape is None else int(np.prod(parameters.shape))
    if n_fixed > 64:
        raise TransformUnreadable(
            f"{kind} has {n_fixed} fixed parameters", file=path, expected="at most 18", remedy=AGAIN
        )
    fixed_values = np.ravel(fixed[()]).astype(float) if n_fixed else np.empty(0)
    return Component(kind, dimensions, fixed_values, n_parameters, lambda dtype: np.ravel(parameters.astype(dtype)[()]))


def _either(group: h5py.Group, path: Path, *names: str) -> h5py.Dataset:
    name = next((name for name in names if name in group), names[0])
    found = _member(group, name, path)
    if found.dtype.kind not in "fiu":
        raise TypeError(f"{name} holds no numbers")
    return found


def _kind(name: str, path: Path) -> tuple[str, tuple[int, int]]:
    kind, _, rest = name.partition("_")
    words = rest.split("_")
    if len(words) != 3 or not all(re.fullmatch("[0-9]{1,3}", word) for word in words[1:]):
        raise TransformUnreadable(
            f"{reprlib.repr(name)} names no ITK transform",
            file=path,
            expected="a name as Affine..._double_3_3",
            remedy=AGAIN,
        )
    return kind, (int(words[1]), int(words[2]))


# --- text -------------------------------------------------------------------------------------------------------


def _text_components(path: Path) -> Iterator[Component]:
    if path.stat().st_size > LARGEST_TEXT:
        raise TransformUnreadable(
            "the transform is too large for a text", file=path, expected=f"at most {LARGEST_TEXT} bytes", remedy=AGAIN
        )
    entries: list[dict[str, str]] = []
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        key, colon, value = line.partition(":")
        if line.startswith("#") or not colon:
            continue
        if key.strip() == "Transform":
            entries.append({})
        if entries:
            entries[-1][key.strip()] = value.strip()
    for entry in entries:
        kind, dimensions = _kind(entry["Transform"], path)
        parameters = _numbers(entry.get("Parameters", ""), path)
        fixed = _numbers(entry.get("FixedParameters", ""), path)
        yield Component(kind, dimensions, fixed, len(parameters), parameters.astype)


def _numbers(text: str, path: Path) -> np.ndarray:
    try:
        return np.array([float(word) for word in text.split()])
    except ValueError as error:
        raise TransformUnreadable(f"a parameter is no number ({error})", file=path, remedy=AGAIN) from None


# --- displacement fields ----------------------------------------------------------------------------------------


def _field(component: Component, path: Path) -> DisplacementField:
    geometry = _field_geometry(component, path)
    if component.n_parameters != 3 * geometry.n_voxels:
        raise TransformUnreadable(
            f"the displacement field has {component.n_parameters} values",
            file=path,
            expected=f"3 for each of its {'x'.join(str(n) for n in geometry.shape)} voxels",
            remedy="The file is broken: fetch or write it again",
        )
    vectors = component.read(np.float32).reshape(-1, 3)  # x fastest, as volumes lie in a file
    vectors[:, :2] *= -1  # LPS to RAS
    if not np.isfinite(vectors).all():
        raise TransformUnreadable("the displacement field holds NaN or infinity", file=path, remedy=AGAIN)
    return DisplacementField(geometry, vectors)


def _field_geometry(component: Component, path: Path) -> Grid:
    fixed = component.fixed
    if len(fixed) != 18 or not np.isfinite(fixed).all():
        raise TransformUnreadable(
            f"the displacement field has {len(fixed)} fixed parameters",
            file=path,
            expected="18 finite ones (size, origin, spacing, direction)",
            remedy=AGAIN,
        )
    size, origin, spacing, direction = fixed[:3], fixed[3:6], fixed[6:9], fixed[9:].reshape(3, 3)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = direction * spacing, origin
    if (size < 1).any() or np.prod(size) > LARGEST_FIELD or abs(np.linalg.det(matrix)) < 1e-9:
        raise TransformUnreadable(
            f"the displacement field declares {size.tolist()} voxels of {spacing.tolist()} mm",
            file=path,
            expected=f"a grid of at most {LARGEST_FIELD} voxels",
            remedy=AGAIN,
        )
    return Grid.of(size, LPS_TO_RAS @ matrix, "field")


# --- linear transforms ------------------------------------------------------------------------------------------

# parameters, fixed parameters -> 3x3 matrix, translation, centre of rotation (ITK's classes of the same names)
Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


def _linear(component: Component, path: Path) -> Linear:
    n_expected, n_fixed, convert = LINEAR_KINDS[component.kind]
    if component.n_parameters != n_expected or len(component.fixed) < n_fixed:
        raise TransformUnreadable(
            f"{component.kind} has {component.n_parameters} parameters and {len(component.fixed)} fixed ones",
            file=path,
            expected=f"{n_expected} and {n_fixed}",
            remedy=AGAIN,
        )
    matrix, translation, centre = convert(component.read(np.float64), component.fixed)
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = matrix, translation + centre - matrix @ centre
    if not np.isfinite(lps).all() or abs(np.linalg.det(lps)) < 1e-6:
        raise TransformUnreadable(f"the matrix of {component.kind} is singular or not finite", file=path, remedy=AGAIN)
    return Linear(LPS_TO_RAS @ lps @ LPS_TO_RAS)


def _affine(p: np.ndarray, fixed: np.ndarray) -> Parts:
    return p[:9].reshape(3, 3), p[9:12], fixed[:3]


def _euler(p: np.ndarray, fixed: np.ndarray) -> Parts:
    x, y, z = (_rotation(axis, angle) for axis, angle in enumerate(p[:3]))
    zyx = len(fixed) > 3 and fixed[3] != 0  # the order of rotations that ITK's ComputeZYX asks for
    return (z @ y @ x if zyx else z @ x @ y), p[3:6], fixed[:3]


def _rotation(axis: int, angle: float) -> np.ndarray:
    versor = np.zeros(3)
    versor[axis] = np.sin(angle / 2)
    return _quaternion(*versor, np.cos(angle / 2))


def _quaternion(x: float, y: float, z: float, w: float) -> np.ndarray:
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _versor(p: np.ndarray) -> np.ndarray:
    return _quaternion(*p[:3], np.sqrt(max(0.0, 1 - p[:3] @ p[:3])))


NOWHERE = np.zeros(3)
LINEAR_KINDS: dict[str, tuple[int, int, Callable[[np.ndarray, np.ndarray], Parts]]] = {
    "AffineTransform": (12, 3, _affine),
    "MatrixOffsetTransformBase": (12, 3, _affine),
    "Rigid3DTransform": (12, 3, _affine),
    "Euler3DTransform": (6, 3, _euler),
    "VersorTransform": (3, 3, lambda p, fixed: (_versor(p), NOWHERE, fixed[:3])),
    "VersorRigid3DTransform": (6, 3, lambda p, fixed: (_versor(p), p[3:6], fixed[:3])),
    "Similarity3DTransform": (7, 3, lambda p, fixed: (_versor(p) * p[6], p[3:6], fixed[:3])),
    "QuaternionRigidTransform": (7, 3, lambda p, fixed: (_quaternion(*p[:4]), p[4:7], fixed[:3])),
    "ScaleTransform": (3, 3, lambda p, fixed: (np.diag(p), NOWHERE, fixed[:3])),
    "TranslationTransform": (3, 0, lambda p, fixed: (np.eye(3), p, NOWHERE)),
    "IdentityTransform": (0, 0, lambda p, fixed: (np.eye(3), NOWHERE, NOWHERE)),
}
