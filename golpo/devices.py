"""The machine that the work runs on: its device, what its processor multiplies, its memory."""

import torch


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is the GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products. "auto": bf16 where the hardware has it, fp16 on older GPUs.

    A T4 claims bf16 (`is_bf16_supported`) but only emulates it; compute capability 8.0 decides.
    """
    if name == "auto" and device.type == "cuda":
        name = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    elif name == "auto":
        name = "bf16" if cpu_has("avx512_bf16", "amx_tile") else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]


def cpu_has(*instructions: str) -> bool:
    """Whether the processor has one of the sets of instructions, by PyTorch's names for them.

    Always False with PyTorch 2.10, which does not list them.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in instructions)


def free_memory(device: torch.device) -> None:
    """Give memory that PyTorch keeps for later back to the GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
