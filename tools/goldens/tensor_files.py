"""Goldens for src/weights: checkpoints that are not safetensors, as PyTorch and flax write them.

Writes tests/goldens/files/NAME.{pt,msgpack} and, beside each, NAME.safetensors: the tensors that it holds, contiguous, under the names
that scumble gives them.

flax's format is written down from `flax/serialization.py` (`_ndarray_to_bytes`, `_msgpack_ext_pack`, `_chunk`); neither flax nor jax is needed.

Run: python tools/goldens/tensor_files.py   (torch, safetensors, numpy, msgpack)
"""

import collections
import io
import pathlib
import pickle
import sys
import types
import zipfile

import msgpack
import numpy
import torch
from safetensors.torch import save_file

torch.set_num_threads(1)
torch.manual_seed(0)
FOLDER = pathlib.Path(__file__).resolve().parents[2] / "tests" / "goldens" / "files"


def flatten(value, name=""):
    """Names and tensors of nested containers."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {}
    found = {}
    for key, inner in items:
        found |= flatten(inner, f"{name}.{key}" if name else str(key))
    return found


def write_expected(name, tensors):
    plain = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in flatten(tensors).items()}
    save_file(plain, FOLDER / f"{name}.safetensors")


def save(name, value, tensors, **options):
    torch.save(value, FOLDER / f"{name}.pt", **options)
    write_expected(name, tensors)


def odd_tensors():
    """What a state dict may hold: every type, and views of every kind."""
    base = torch.randn(6, 5)
    wide = torch.arange(4 * 3 * 2 * 5, dtype=torch.float32).reshape(4, 3, 2, 5)
    return collections.OrderedDict(
        plain=base,
        shared=base,
        transposed=base.t(),
        sliced=base[1:5:2, 1:4],
        row=base[3],
        column=base[:, 2],
        expanded=torch.randn(3, 1).expand(3, 7),
        repeated=torch.tensor(2.5).expand(2, 3),
        channels_last=torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        permuted=wide.permute(2, 0, 3, 1),
        narrow=wide[:, 1:2, :, 1:4],
        ones=torch.randn(5, 1, 1)[::2],
        half=torch.randn(3, 4).half(),
        bfloat=torch.randn(7).bfloat16().reshape(7, 1),
        bfloat_t=torch.randn(4, 6).bfloat16().t(),
        double=torch.randn(3, dtype=torch.float64),
        long=torch.tensor([-1, 2**40], dtype=torch.int64),
        int=torch.tensor([[1, -2]], dtype=torch.int32),
        short=torch.tensor([3, -3], dtype=torch.int16),
        char=torch.tensor([-128, 127], dtype=torch.int8),
        byte=torch.tensor([0, 255], dtype=torch.uint8)[1:],
        bool=torch.tensor([True, False, True]),
        scalar=torch.tensor(0.1),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.randn(2, 2)),
        frozen=torch.nn.Parameter(torch.randn(2), requires_grad=False),
        nested={"deep": {"er": torch.randn(2)}, "list": [torch.randn(1), (torch.randn(2),)], 7: torch.randn(3)},
        note="no tensor",
    )


def fake(path, **attributes):
    """A module of a package that need not be installed, whose classes are pickled by name."""
    parts = path.split(".")
    for end in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
    for name, value in attributes.items():
        value.__module__ = path
        value.__qualname__ = name
        setattr(sys.modules[path], name, value)


def lightning():
    """As the published Stable Diffusion .ckpt files: weights below `state_dict`, the training beside them."""

    class ModelCheckpoint:
        pass

    class DictConfig:
        def __init__(self, content):
            self.content = content

    fake("pytorch_lightning.callbacks.model_checkpoint", ModelCheckpoint=ModelCheckpoint)
    fake("omegaconf.dictconfig", DictConfig=DictConfig)
    weights = {
        "model.diffusion_model.time_embed.0.weight": torch.randn(4, 3),
        "model.diffusion_model.time_embed.0.bias": torch.randn(4).half(),
        "betas": torch.linspace(0.1, 0.2, 5),
    }
    whole = {
        "epoch": 3,
        "global_step": 2**33,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": weights,
        "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(1.5), "monitor": "val/loss", "current": numpy.float64(0.5)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.randn(2), "step": 5}}, "param_groups": [{"lr": 1e-4, "params": [0, 1]}]}],
        "lr_schedulers": [{"base_lrs": [1e-4], "last_epoch": 7, "flags": {1, 2}}],
        "hparams": DictConfig({"a": [1, 2.5, None, True, b"bytes"]}),
    }
    return whole, weights


class Branch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.randn(3))
        self.register_buffer("offset", torch.randn(2, 3).t())
        self.table: list[torch.Tensor] = [torch.randn(2), torch.randn(1)]

    def forward(self, x):
        return x * self.scale + self.offset[:, 0] + self.table[0][0] + torch.tensor([1.0, 2.0, 3.0])


class Whole(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = Branch()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(3, 3).half().float(), torch.nn.BatchNorm1d(3)])
        self.width = 3

    def forward(self, x):
        return self.layers[1](self.layers[0](self.branch(x)))


def without_debug_files(path):
    """Takes the records out that name source files of the machine; the rest stays stored or compressed as it was."""
    with zipfile.ZipFile(path) as archive:
        records = [(info, archive.read(info)) for info in archive.infolist() if not info.filename.endswith(".debug_pkl")]
    with zipfile.ZipFile(path, "w") as archive:
        for info, data in records:
            archive.writestr(zipfile.ZipInfo(info.filename), data, info.compress_type)


def script():
    module = Whole().eval()
    torch.jit.save(torch.jit.script(module), FOLDER / "script.pt")
    without_debug_files(FOLDER / "script.pt")
    write_expected("script", dict(module.state_dict()) | {"branch.table": module.branch.table})
    traced = torch.jit.trace(module, torch.randn(2, 3))
    torch.jit.save(traced, FOLDER / "traced.pt")
    without_debug_files(FOLDER / "traced.pt")
    write_expected("traced", dict(module.state_dict()) | traced_constants(FOLDER / "traced.pt"))


def traced_constants(path):
    """`CONSTANTS.c0` and so on: PyTorch's own reader of constants.pkl."""
    constants = torch._C.PyTorchFileReader(str(path))

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            if module == "torch" and name.endswith("Storage"):
                return name
            return super().find_class(module, name)

        def persistent_load(self, key):
            kind = {"FloatStorage": torch.float32, "LongStorage": torch.int64}[key[1]]
            raw = constants.get_record(f"constants/{key[2]}")
            untyped = torch.frombuffer(bytearray(raw), dtype=kind).untyped_storage()
            return torch.storage.TypedStorage(wrap_storage=untyped, dtype=kind, _internal=True)

    found = Reader(io.BytesIO(constants.get_record("constants.pkl"))).load()
    return {f"CONSTANTS.{index}": tensor for index, tensor in enumerate(found)}


def pack_array(array, shape=None):
    shape = array.shape if shape is None else shape
    name = "bfloat16" if array.dtype == numpy.uint16 else array.dtype.name
    return msgpack.packb((shape, name, array.tobytes("C")), use_bin_type=True)


def pack(tree):
    def extension(value):
        if isinstance(value, numpy.ndarray):
            return msgpack.ExtType(1, pack_array(value))
        if isinstance(value, numpy.generic):
            return msgpack.ExtType(3, pack_array(numpy.asarray(value)))
        if isinstance(value, complex):
            return msgpack.ExtType(2, msgpack.packb((value.real, value.imag)))
        raise TypeError(type(value))

    return msgpack.packb(tree, default=extension, strict_types=True)


def flax():
    draw = numpy.random.default_rng(0)
    kernel = draw.standard_normal((3, 4, 2)).astype(numpy.float32)
    chunked = draw.standard_normal((5, 7)).astype(numpy.float16)
    bits = draw.integers(0, 0x3F80, (4, 2)).astype(numpy.uint16)
    flat = chunked.reshape(-1)
    chunks = {str(i): flat[at : at + 8] for i, at in enumerate(range(0, flat.size, 8))}
    tree = {
        "params": {
            "encoder": {"layers": {"FlaxBartAttention_0": {"kernel": kernel}}, "scale": numpy.float32(1.5)},
            "embedding": {"__msgpack_chunked_array__": True, "shape": {"0": 5, "1": 7}, "chunks": chunks},
        },
        "half": bits,
        "empty": numpy.zeros((0, 2), numpy.float32),
        "ids": numpy.arange(300, dtype=numpy.int32),
        "step": 7,
        "z": 1j,
    }
    (FOLDER / "flax.msgpack").write_bytes(pack(tree))
    expected = {
        "params.encoder.layers.FlaxBartAttention_0.kernel": torch.from_numpy(kernel),
        "params.encoder.scale": torch.tensor(1.5),
        "params.embedding": torch.from_numpy(chunked),
        "half": torch.from_numpy(bits.view(numpy.int16)).view(torch.bfloat16),
        "empty": torch.zeros(0, 2),
        "ids": torch.arange(300, dtype=torch.int32),
    }
    write_expected("flax", expected)


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    odd = odd_tensors()
    save("odd_zip", odd, odd)
    save("odd_zip_4", odd, odd, pickle_protocol=4)
    save("odd_legacy", odd, odd, _use_new_zipfile_serialization=False)
    save("odd_legacy_4", odd, odd, _use_new_zipfile_serialization=False, pickle_protocol=4)
    whole, weights = lightning()
    save("lightning", whole, weights)
    ema = {"conv_first.weight": torch.randn(2, 3, 3, 3)}
    save("params_ema", {"params_ema": ema, "params": {"conv_first.weight": torch.randn(2, 3, 3, 3)}}, ema)
    unsigned = {"u16": torch.tensor([1, 65535], dtype=torch.uint16), "u64": torch.tensor([2**63], dtype=torch.uint64),
                "fp8": torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn)}
    save("new_types", unsigned, unsigned)
    script()
    flax()


if __name__ == "__main__":
    main()
