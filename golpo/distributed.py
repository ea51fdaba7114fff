"""Several processes on several GPUs, started by `torchrun -m golpo train`."""

import contextlib
import os
import signal
from collections.abc import Iterator

import torch

from golpo.errors import TrainingError


def rank_and_world_size() -> tuple[int, int]:
    """The number of this process, and how many there are: (0, 1) for a single one."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def sum_over_processes(*values: float) -> list[float]:
    """Each value summed over all processes; unchanged for a single one."""
    if not torch.distributed.is_initialized():
        return list(values)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    total = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return total.tolist()


@contextlib.contextmanager
def process_group() -> Iterator[int]:
    """Join the processes that torchrun started, if there are several; yield this one's rank.

    Raises TrainingError if another process ends before its time.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield 0
        return
    use_gpu = torch.cuda.is_available()
    if use_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if use_gpu else "gloo")
    # When one process dies, torchrun sends SIGTERM to the others. They first save and print why
    # the training ended; within the training loop SIGTERM asks for a checkpoint.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield torch.distributed.get_rank()
        torch.distributed.barrier()  # nobody leaves while another one still saves
    except RuntimeError as error:
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            raise TrainingError(
                "another process of this training died or cannot be reached (its own message "
                "says why); start torchrun again, and training resumes from the last checkpoint"
            ) from None
        raise
    finally:
        torch.distributed.destroy_process_group()
