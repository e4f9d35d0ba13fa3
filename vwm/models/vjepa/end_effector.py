"""The pose of a robot's end effector, and its change by an action, as V-JEPA 2-AC uses them.

A pose has 7 numbers: the position in meters, three Euler angles in radians, and how far the gripper is closed, 0 to 1.
The angles turn about the fixed axes x, y and z, in this order. An action is the difference of two poses: positions and
grippers add up, and its rotation is applied after that of the pose.
"""

from __future__ import annotations

import torch
from torch import Tensor

POSE_SIZE = 7
POSE_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


def move_end_effector(pose: Tensor, action: Tensor) -> Tensor:
    """Return the pose after an action: float [..., 7] twice -> [..., 7], computed in float64."""
    wide, change = pose.double(), action.double()
    turned = euler_to_matrix(change[..., 3:6]) @ euler_to_matrix(wide[..., 3:6])
    gripper = (wide[..., 6:] + change[..., 6:]).clamp(0, 1)
    moved = torch.cat((wide[..., :3] + change[..., :3], matrix_to_euler(turned), gripper), dim=-1)
    return moved.to(pose.dtype)


def pose_difference(start: Tensor, end: Tensor) -> Tensor:
    """Return the action that leads from one pose to another: float [..., 7] twice -> [..., 7]."""
    first, last = start.double(), end.double()
    turn = euler_to_matrix(last[..., 3:6]) @ euler_to_matrix(first[..., 3:6]).mT
    difference = torch.cat((last[..., :3] - first[..., :3], matrix_to_euler(turn), last[..., 6:] - first[..., 6:]), -1)
    return difference.to(start.dtype)


def euler_to_matrix(angles: Tensor) -> Tensor:
    """Rotation matrices of angles about the fixed axes x, y and z, in this order: [..., 3] -> [..., 3, 3]."""
    x, y, z = angles.unbind(-1)
    rows = (
        (
            z.cos() * y.cos(),
            z.cos() * y.sin() * x.sin() - z.sin() * x.cos(),
            z.cos() * y.sin() * x.cos() + z.sin() * x.sin(),
        ),
        (
            z.sin() * y.cos(),
            z.sin() * y.sin() * x.sin() + z.cos() * x.cos(),
            z.sin() * y.sin() * x.cos() - z.cos() * x.sin(),
        ),
        (-y.sin(), y.cos() * x.sin(), y.cos() * x.cos()),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def matrix_to_euler(matrix: Tensor) -> Tensor:
    """Inverse of ``euler_to_matrix``, with the second angle in [-pi/2, pi/2]: [..., 3, 3] -> [..., 3].

    Where the second angle is a right one, only the sum or difference of the others is determined.
    """
    across = torch.hypot(matrix[..., 0, 0], matrix[..., 1, 0])
    return torch.stack(
        (
            torch.atan2(matrix[..., 2, 1], matrix[..., 2, 2]),
            torch.atan2(-matrix[..., 2, 0], across),
            torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0]),
        ),
        dim=-1,
    )
