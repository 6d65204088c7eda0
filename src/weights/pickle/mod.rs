//! PyTorch checkpoints: a pickle that says which tensors there are, and raw storages that hold their elements.
//!
//! A pickle is a program for a stack machine that may import and call anything. The [`machine`] here executes nothing:
//! it knows the opcodes of protocols 2 to 5 that build plain data, and the [`globals`] that a checkpoint needs. A
//! call of `torch._utils._rebuild_tensor_v2` becomes the description of a tensor ([`tensors`]); objects of classes that
//! trainings leave in checkpoints become opaque values without content. Everything else is refused, by name and
//! with its place in the file. Python: `Lib/pickletools.py`; PyTorch: `torch/serialization.py`, `torch/_utils.py`.

mod archive;
mod calls;
mod globals;
mod legacy;
mod machine;
mod names;
mod opcodes;
mod tensors;

pub(super) use archive::open as open_archive;
pub(super) use legacy::open as open_legacy;

/// Whether a file is a zip archive.
pub(super) fn is_archive(file: &[u8]) -> bool {
    file.starts_with(b"PK\x03\x04") || file.starts_with(b"PK\x05\x06")
}

/// Whether a file begins as a pickle of protocol 2 or later does.
pub(super) fn is_pickle(file: &[u8]) -> bool {
    matches!(file, [0x80, 2..=5, ..])
}
