"""Poses of an end effector: differences lead from one pose to the other."""

from __future__ import annotations

import math

import torch
from vjepa_models import random

from vwm.models.vjepa.end_effector import euler_to_matrix, matrix_to_euler, move_end_effector, pose_difference


def axis_turn(axis: int, angle: float) -> torch.Tensor:
    matrix = torch.eye(3, dtype=torch.float64)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix[a, a] = matrix[b, b] = math.cos(angle)
    matrix[b, a], matrix[a, b] = math.sin(angle), -math.sin(angle)
    return matrix


def test_angles_turn_about_the_fixed_axes_one_after_the_other():
    expected = axis_turn(2, 1.1) @ axis_turn(1, -0.4) @ axis_turn(0, 2.0)
    angles = torch.tensor([2.0, -0.4, 1.1], dtype=torch.float64)
    torch.testing.assert_close(euler_to_matrix(angles), expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(matrix_to_euler(expected), angles, rtol=0, atol=1e-15)


def test_a_difference_of_poses_leads_from_one_to_the_other():
    start, end = random(5, 7), random(5, 7, seed=1)
    start[:, 6], end[:, 6] = start[:, 6].sigmoid(), end[:, 6].sigmoid()
    moved = move_end_effector(start, pose_difference(start, end))
    torch.testing.assert_close(moved[:, [0, 1, 2, 6]], end[:, [0, 1, 2, 6]], rtol=0, atol=1e-12)
    torch.testing.assert_close(euler_to_matrix(moved[:, 3:6]), euler_to_matrix(end[:, 3:6]), rtol=0, atol=1e-12)
    down = axis_turn(2, 0.5) @ axis_turn(0, 0.3)  # the rotation of an action comes after that of the pose
    turned = move_end_effector(torch.tensor([0, 0, 0, 0.3, 0, 0, 0.9]), torch.tensor([0, 0, 0, 0, 0, 0.5, 0.75]))
    torch.testing.assert_close(euler_to_matrix(turned[3:6].double()), down, rtol=0, atol=1e-6)
    assert turned[6] == 1 and turned.dtype == torch.float32
