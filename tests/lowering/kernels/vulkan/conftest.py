"""What tests on a Vulkan device share."""

import os
from pathlib import Path

import pytest

from tests.lowering.kernels.vulkan.device import require_device


def layer_is_installed() -> bool:
    folders = [*os.environ.get("VK_LAYER_PATH", "").split(":"), "/etc/vulkan/explicit_layer.d"]
    folders += ["/usr/share/vulkan/explicit_layer.d", "/usr/local/share/vulkan/explicit_layer.d"]
    name = "VkLayer_khronos_validation.json"
    return any(folder and Path(folder, name).exists() for folder in folders)


@pytest.fixture
def validation() -> dict[str, str]:
    """Settings that have every call of Vulkan's looked at."""
    require_device()
    if not layer_is_installed():
        pytest.skip("no Khronos validation layer (Debian's vulkan-validationlayers)")
    return {"VK_INSTANCE_LAYERS": "VK_LAYER_KHRONOS_validation"}
