//! The names that a pickle may import, and what each stands for here. None is ever called.

use super::super::stored::FileType;
use crate::tensor::DType;

/// What an imported name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// A storage class with elements of that type.
    Storage(FileType),
    /// `torch.UntypedStorage`: bytes whose type the tensor tells.
    UntypedStorage,
    /// `torch.float32` and the like.
    Element(FileType),
    /// `torch._utils._rebuild_tensor`, `_v2`: (storage, offset, shape, strides, ...).
    RebuildTensor,
    /// `torch._utils._rebuild_tensor_v3`: the same with an element type.
    RebuildTensorV3,
    /// `torch._utils._rebuild_parameter`: (tensor, ...).
    RebuildParameter,
    /// `torch._tensor._rebuild_from_type_v2`: (function, class, arguments, attributes).
    RebuildFromType,
    /// A tensor class, which only [`Global::RebuildFromType`] names.
    TensorClass,
    /// A dictionary that is made empty or from pairs.
    Dict,
    /// `torch.Size`: a tuple.
    Size,
    /// `torch.jit._pickle.restore_type_tag`, `build_tensorlist`: (value, ...).
    RestoreTag,
    /// A class or function whose values are carried along without content.
    Opaque,
    /// A class of a TorchScript archive: a bag of attributes.
    Script,
}

impl Global {
    /// Whether it makes a tensor out of a storage or of another tensor.
    pub fn rebuilds(self) -> bool {
        matches!(self, Self::RebuildTensor | Self::RebuildTensorV3 | Self::RebuildParameter)
    }
}

/// Storage classes of module `torch` (before 1.0 also `torch.cuda`).
const STORAGES: [(&str, FileType); 12] = [
    ("FloatStorage", FileType::Float(DType::F32)),
    ("HalfStorage", FileType::Float(DType::F16)),
    ("BFloat16Storage", FileType::Float(DType::BF16)),
    ("DoubleStorage", FileType::Double),
    ("BoolStorage", FileType::Other("BOOL", 1)),
    ("ByteStorage", FileType::Other("U8", 1)),
    ("CharStorage", FileType::Other("I8", 1)),
    ("ShortStorage", FileType::Other("I16", 2)),
    ("IntStorage", FileType::Other("I32", 4)),
    ("LongStorage", FileType::Other("I64", 8)),
    ("Float8_e5m2Storage", FileType::Other("F8_E5M2", 1)),
    ("Float8_e4m3fnStorage", FileType::Other("F8_E4M3", 1)),
];

/// Element types of module `torch`.
const ELEMENTS: [(&str, FileType); 16] = [
    ("float32", FileType::Float(DType::F32)),
    ("float16", FileType::Float(DType::F16)),
    ("bfloat16", FileType::Float(DType::BF16)),
    ("float64", FileType::Double),
    ("bool", FileType::Other("BOOL", 1)),
    ("uint8", FileType::Other("U8", 1)),
    ("int8", FileType::Other("I8", 1)),
    ("int16", FileType::Other("I16", 2)),
    ("int32", FileType::Other("I32", 4)),
    ("int64", FileType::Other("I64", 8)),
    ("uint16", FileType::Other("U16", 2)),
    ("uint32", FileType::Other("U32", 4)),
    ("uint64", FileType::Other("U64", 8)),
    ("float8_e5m2", FileType::Other("F8_E5M2", 1)),
    ("float8_e4m3fn", FileType::Other("F8_E4M3", 1)),
    ("float8_e8m0fnu", FileType::Other("F8_E8M0", 1)),
];

/// Names with a meaning of their own.
const KNOWN: [(&str, &str, Global); 16] = [
    ("collections", "OrderedDict", Global::Dict),
    ("torch", "Size", Global::Size),
    ("torch", "Tensor", Global::TensorClass),
    ("torch", "UntypedStorage", Global::UntypedStorage),
    ("torch._tensor", "_rebuild_from_type_v2", Global::RebuildFromType),
    ("torch._utils", "_rebuild_parameter", Global::RebuildParameter),
    ("torch._utils", "_rebuild_parameter_with_state", Global::RebuildParameter),
    ("torch._utils", "_rebuild_tensor", Global::RebuildTensor),
    ("torch._utils", "_rebuild_tensor_v2", Global::RebuildTensor),
    ("torch._utils", "_rebuild_tensor_v3", Global::RebuildTensorV3),
    ("torch.jit._pickle", "build_tensorlist", Global::RestoreTag),
    ("torch.jit._pickle", "restore_type_tag", Global::RestoreTag),
    ("torch.nn", "Parameter", Global::TensorClass),
    ("torch.nn.parameter", "Buffer", Global::TensorClass),
    ("torch.nn.parameter", "Parameter", Global::TensorClass),
    ("torch.storage", "UntypedStorage", Global::UntypedStorage),
];

/// Plain data and configs that trainings put beside the tensors: module, then its names.
const OPAQUE: [(&str, &[&str]); 32] = [
    ("__builtin__", BUILTINS),
    ("builtins", BUILTINS),
    ("_codecs", &["encode"]),
    ("argparse", &["Namespace"]),
    ("collections", &["Counter", "defaultdict", "deque"]),
    ("datetime", &["date", "datetime", "timedelta"]),
    ("numpy", &["dtype", "ndarray"]),
    ("numpy._core.multiarray", &["_reconstruct", "scalar"]),
    ("numpy.core.multiarray", &["_reconstruct", "scalar"]),
    ("numpy.dtypes", &["Float32DType", "Float64DType", "Int64DType"]),
    ("omegaconf.base", &["ContainerMetadata", "Metadata"]),
    ("omegaconf.dictconfig", &["DictConfig"]),
    ("omegaconf.listconfig", &["ListConfig"]),
    ("omegaconf.nodes", &["AnyNode", "BooleanNode", "FloatNode", "IntegerNode", "StringNode"]),
    ("pathlib", &["PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"]),
    ("pytorch_lightning.callbacks", &["EarlyStopping", "ModelCheckpoint"]),
    ("pytorch_lightning.callbacks.early_stopping", &["EarlyStopping"]),
    ("pytorch_lightning.callbacks.lr_monitor", &["LearningRateMonitor"]),
    ("pytorch_lightning.callbacks.model_checkpoint", &["ModelCheckpoint"]),
    ("pytorch_lightning.callbacks.progress", &["ProgressBar", "TQDMProgressBar"]),
    ("pytorch_lightning.callbacks.timer", &["Timer"]),
    ("pytorch_lightning.utilities.parsing", &["AttributeDict"]),
    ("lightning.fabric.utilities.data", &["AttributeDict"]),
    ("lightning.pytorch.callbacks.early_stopping", &["EarlyStopping"]),
    ("lightning.pytorch.callbacks.model_checkpoint", &["ModelCheckpoint"]),
    ("lightning_fabric.utilities.data", &["AttributeDict"]),
    ("torch", &["contiguous_format", "channels_last", "device", "preserve_format", "strided"]),
    ("torch.jit._pickle", &["build_boollist", "build_doublelist", "build_intlist"]),
    ("torch.serialization", &["_get_layout"]),
    ("typing", &["Any", "Dict", "List", "Optional", "Tuple", "Union"]),
    ("uuid", &["UUID"]),
    ("yacs.config", &["CfgNode"]),
];

/// Types of plain values. What runs code (`eval`, `exec`, `getattr`, `__import__`, ...) is not among them.
const BUILTINS: &[&str] = &[
    "bool",
    "bytearray",
    "bytes",
    "complex",
    "dict",
    "float",
    "frozenset",
    "int",
    "list",
    "long",
    "object",
    "range",
    "set",
    "slice",
    "str",
    "tuple",
    "unicode",
];

/// What the name stands for; `None` if it is not allowed. `script`: the classes of a TorchScript archive are.
pub(super) fn find(module: &str, name: &str, script: bool) -> Option<Global> {
    if let Some((.., global)) = KNOWN.iter().find(|(m, n, _)| (*m, *n) == (module, name)) {
        return Some(*global);
    }
    if ["torch", "torch.cuda"].contains(&module)
        && let Some((_, kind)) = STORAGES.iter().find(|(n, _)| *n == name)
    {
        return Some(Global::Storage(*kind));
    }
    if module == "torch"
        && let Some((_, kind)) = ELEMENTS.iter().find(|(n, _)| *n == name)
    {
        return Some(Global::Element(*kind));
    }
    if script && (module == "__torch__" || module.starts_with("__torch__.")) {
        return Some(Global::Script);
    }
    let opaque = OPAQUE.iter().any(|(m, names)| *m == module && names.contains(&name));
    opaque.then_some(Global::Opaque)
}
