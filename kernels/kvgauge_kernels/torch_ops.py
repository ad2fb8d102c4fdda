"""torch's attention operators, of which a backend names those that must and must not be seen to run."""

from __future__ import annotations

# torch's attention operators, by the kernel that they stand for, as a TorchDispatchMode names them.
FLASH_OPS = (
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
)
# The math path is made of common operators; only its softmax is its own.
MATH_OPS = ("aten::_safe_softmax", "aten::_scaled_dot_product_attention_math")
OTHER_FUSED_OPS = (
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
)
SDPA_OPS = FLASH_OPS + MATH_OPS + OTHER_FUSED_OPS
