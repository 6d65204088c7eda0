"""How PyTorch's work is timed: as scumble's bench does it, after a warm-up, on inputs in turn, until the median is sure."""

import statistics
import time

import torch

ROTATED_BYTES = {"cuda": 128 << 20, "cpu": 16 << 20}
MOST_COPIES = {"cuda": 64, "cpu": 4}
MOST_SAMPLES = 100


def dtype(precision):
    return {"f32": torch.float32, "f16": torch.float16}[precision]


def copies(inputs, device):
    """The inputs and clones of them, together larger than a cache."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in inputs if tensor is not None)
    count = min(max(-(-ROTATED_BYTES[device] // max(size, 1)), 2), MOST_COPIES[device])
    clone = lambda tensor: None if tensor is None else tensor.clone()
    return [inputs] + [[clone(tensor) for tensor in inputs] for _ in range(count - 1)]


def lap(device, work):
    """Seconds of one call of `work`, by the device's events on a GPU."""
    if device != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def sure(samples):
    """Whether the median's 95 % interval is within 1 % of it (McGill, Tukey and Larsen 1978)."""
    if len(samples) < 2:
        return False
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return 1.57 * (high - low) / len(samples) ** 0.5 <= 0.01 * statistics.median(samples)


def median(device, function, inputs, runs, budget=0.5):
    """Median seconds of `function(*inputs)`, over at least `runs` samples."""
    turns = copies(inputs, device)
    with torch.inference_mode():
        for turn in turns[:3]:
            function(*turn)
        once = max(lap(device, lambda: function(*turns[0])), 1e-7)
        repeats = min(max(int(0.005 / once / len(turns)), 1), 50) * len(turns) if once < 0.05 else 1

        def together():
            for index in range(repeats):
                function(*turns[index % len(turns)])

        samples, begin = [], time.perf_counter()
        while len(samples) < MOST_SAMPLES:
            samples.append(lap(device, together) / repeats)
            late = time.perf_counter() - begin > budget
            if len(samples) >= runs and (late or sure(samples)):
                break
    return statistics.median(samples)
