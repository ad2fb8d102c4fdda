"""The int8 scale: a row's largest element is the largest step, 127, and nothing is clipped."""

from __future__ import annotations

import numpy as np
import torch

from kvgauge_kernels.quantize import quantize_int8


def stored_and_scale(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    found = quantize_int8(rows)
    assert found.scale is not None
    return found.codes, found.scale


def test_a_row_worked_out_by_hand() -> None:
    stored, scale = stored_and_scale(
        torch.tensor([[-254.0, 127.0, 3.0, 0.0], [1.27, 0.5, -1.0, 0.1]])
    )
    assert scale[0].item() == 2.0
    assert scale.dtype == torch.float16
    assert stored.tolist() == [[-127, 64, 2, 0], [127, 50, -100, 10]]  # halves go to the even


def test_the_largest_element_of_a_row_is_stored_as_127() -> None:
    rows = torch.randn(500, 64, generator=torch.Generator().manual_seed(3))
    stored, scale = stored_and_scale(rows)
    largest = rows.abs().argmax(dim=1, keepdim=True)
    expected = 127 * rows.gather(1, largest).sign()
    assert torch.equal(stored.gather(1, largest).float(), expected)
    by_hand = (np.abs(rows.numpy()).max(axis=1) / np.float32(127)).astype(np.float16)
    assert np.array_equal(scale.numpy(), by_hand)
