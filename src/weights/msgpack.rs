//! flax's msgpack: nested maps whose leaves are arrays, each an extension value with shape, type and bytes.
//!
//! Format: `flax/serialization.py` (`msgpack_serialize`): extension 1 is an array and 3 a numpy scalar, both with
//! a packed (shape, name of the type, bytes) inside; 2 is a complex number. An array of more than 1 GiB is a map with
//! `__msgpack_chunked_array__`, its shape, and its elements in pieces.

use std::ops::Range;

use rmp::Marker;

use super::shown;
use super::stored::{Collector, Contents, Entry, FileType, Layout, MOST_AXES, MOST_LEVELS, byte_size};
use crate::error::{Error, Result};
use crate::tensor::DType;

/// The key that tells a chunked array from a map of arrays.
const CHUNKED: &str = "__msgpack_chunked_array__";
/// Extension types.
const ARRAY: i8 = 1;
const SCALAR: i8 = 3;

/// Values of a file at most; one takes some hundred bytes, and a model has some thousands.
const MOST_VALUES: usize = 1 << 20;

/// Whether a file begins as a map does that is not empty.
pub(super) fn is_map(file: &[u8]) -> bool {
    matches!(file.first(), Some(0x81..=0x8f | 0xde | 0xdf))
}

/// Reads and checks the structure of `file`; `place` names it in errors.
pub(super) fn parse(file: &[u8], place: &str) -> Result<Contents> {
    let mut reader = Reader { file, at: 0, end: file.len(), place, values: 0 };
    let mut found = Collector::new(place, file.len());
    let top = reader.value(0)?;
    reader.collect(&top, "", &mut found)?;
    if reader.at != file.len() {
        return Err(reader.fault("bytes behind the last value").found(file.len() - reader.at));
    }
    found.finish("msgpack")
}

/// A value of the file, or what is needed of it.
enum Value {
    /// Keys and values in the file's order.
    Map(Vec<(String, Value)>),
    /// Elements of an array.
    List(Vec<Value>),
    Text(Range<usize>),
    Integer(usize),
    Tensor(Entry),
    /// A number, nil, or anything else that is no tensor.
    Other,
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
    /// Where the value that is being read must end at the latest.
    end: usize,
    place: &'a str,
    values: usize,
}

impl Reader<'_> {
    fn fault(&self, what: &str) -> Error {
        Error::new(format!("broken msgpack: {what}"))
            .at(format!("{}: offset {}", self.place, self.at))
            .hint("downloading or exporting the file again")
    }

    fn take(&mut self, count: usize) -> Result<Range<usize>> {
        if count > self.end - self.at {
            return Err(self.fault("truncated").expected(format!("{count} bytes")).found(self.end - self.at));
        }
        let range = self.at..self.at + count;
        self.at += count;
        Ok(range)
    }

    /// A big-endian number of `bytes` bytes.
    fn number(&mut self, bytes: usize) -> Result<usize> {
        let range = self.take(bytes)?;
        let value = self.file[range].iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        Ok(usize::try_from(value).unwrap_or(usize::MAX))
    }

    fn counted(&mut self, bytes: usize) -> Result<Range<usize>> {
        let count = self.number(bytes)?;
        self.take(count)
    }

    fn value(&mut self, level: usize) -> Result<Value> {
        self.values += 1;
        if self.values > MOST_VALUES || level > MOST_LEVELS {
            let most = format!("at most {MOST_LEVELS} levels and {MOST_VALUES} values");
            return Err(self.fault("too deep or too many values").expected(most));
        }
        let marker = self.take(1)?;
        Ok(match Marker::from_u8(self.file[marker.start]) {
            Marker::FixMap(count) => self.map(usize::from(count), level)?,
            Marker::Map16 => self.sized(2, level, Self::map)?,
            Marker::Map32 => self.sized(4, level, Self::map)?,
            Marker::FixArray(count) => self.list(usize::from(count), level)?,
            Marker::Array16 => self.sized(2, level, Self::list)?,
            Marker::Array32 => self.sized(4, level, Self::list)?,
            Marker::FixStr(count) => Value::Text(self.take(usize::from(count))?),
            Marker::Str8 | Marker::Bin8 => Value::Text(self.counted(1)?),
            Marker::Str16 | Marker::Bin16 => Value::Text(self.counted(2)?),
            Marker::Str32 | Marker::Bin32 => Value::Text(self.counted(4)?),
            Marker::FixPos(value) => Value::Integer(usize::from(value)),
            Marker::U8 => Value::Integer(self.number(1)?),
            Marker::U16 => Value::Integer(self.number(2)?),
            Marker::U32 => Value::Integer(self.number(4)?),
            Marker::U64 => Value::Integer(self.number(8)?),
            Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False => Value::Other,
            Marker::I8 => self.skip(1)?,
            Marker::I16 => self.skip(2)?,
            Marker::I32 | Marker::F32 => self.skip(4)?,
            Marker::I64 | Marker::F64 => self.skip(8)?,
            Marker::FixExt1 => self.extension(1, level)?,
            Marker::FixExt2 => self.extension(2, level)?,
            Marker::FixExt4 => self.extension(4, level)?,
            Marker::FixExt8 => self.extension(8, level)?,
            Marker::FixExt16 => self.extension(16, level)?,
            Marker::Ext8 => self.sized(1, level, Self::extension)?,
            Marker::Ext16 => self.sized(2, level, Self::extension)?,
            Marker::Ext32 => self.sized(4, level, Self::extension)?,
            Marker::Reserved => return Err(self.fault("the reserved marker 0xc1")),
        })
    }

    fn sized(
        &mut self,
        bytes: usize,
        level: usize,
        read: fn(&mut Self, usize, usize) -> Result<Value>,
    ) -> Result<Value> {
        let count = self.number(bytes)?;
        read(self, count, level)
    }

    fn skip(&mut self, count: usize) -> Result<Value> {
        self.take(count)?;
        Ok(Value::Other)
    }

    /// Each element has at least a byte, so a length beyond the file ends early; nothing is reserved for it.
    fn list(&mut self, count: usize, level: usize) -> Result<Value> {
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(self.value(level + 1)?);
        }
        Ok(Value::List(items))
    }

    fn map(&mut self, count: usize, level: usize) -> Result<Value> {
        const LONGEST: usize = 1024;
        let mut items = Vec::new();
        for _ in 0..count {
            let key = match self.value(level + 1)? {
                Value::Text(range) if range.len() <= LONGEST => {
                    std::str::from_utf8(&self.file[range]).ok().map(String::from)
                }
                Value::Integer(number) => Some(number.to_string()),
                _ => None,
            };
            let key = key.ok_or_else(|| self.fault("a key that is no short UTF-8 text"))?;
            items.push((key, self.value(level + 1)?));
        }
        match items.iter().any(|(key, _)| key == CHUNKED) {
            true => self.chunked(&items),
            false => Ok(Value::Map(items)),
        }
    }

    fn extension(&mut self, count: usize, level: usize) -> Result<Value> {
        let kind = self.take(1)?;
        let kind = self.file[kind.start].cast_signed();
        let body = self.take(count)?;
        if ![ARRAY, SCALAR].contains(&kind) {
            return Ok(Value::Other);
        }
        let (after, end) = (self.at, std::mem::replace(&mut self.end, body.end));
        self.at = body.start;
        let parts = self.value(level + 1)?;
        if self.at != body.end {
            return Err(self.fault("bytes behind an array"));
        }
        (self.at, self.end) = (after, end);
        let Value::List(parts) = parts else { return Err(self.fault("an array that is no list of three")) };
        let [Value::List(shape), Value::Text(dtype), Value::Text(data)] = parts.as_slice() else {
            return Err(self.fault("an array without shape, type and bytes"));
        };
        let shape = self.shape(shape.iter())?;
        let name = String::from_utf8_lossy(&self.file[dtype.clone()]);
        let file_type = element_type(&name).ok_or_else(|| {
            let error = Error::new("unsupported element type").at(format!("{}: offset {}", self.place, body.start));
            error.expected("float32, float16 or bfloat16").found(shown(&name))
        })?;
        if byte_size(&shape, file_type) != Some(data.len()) {
            let error = self.fault("an array whose bytes do not fit its shape");
            return Err(error.expected(format!("{name} of shape {shape:?}")).found(format!("{} bytes", data.len())));
        }
        Ok(Value::Tensor(Entry { file_type, shape, layout: Layout::Plain(data.clone()) }))
    }

    fn shape<'v>(&self, axes: impl Iterator<Item = &'v Value>) -> Result<Vec<usize>> {
        let axes: Option<Vec<usize>> = axes
            .take(MOST_AXES + 1)
            .map(|axis| if let Value::Integer(length) = axis { Some(*length) } else { None })
            .collect();
        axes.filter(|axes| axes.len() <= MOST_AXES).ok_or_else(|| self.fault("a shape that is none"))
    }

    /// The array that flax has cut into pieces.
    fn chunked(&self, items: &[(String, Value)]) -> Result<Value> {
        let find = |name: &str| items.iter().find(|(key, _)| key == name).map(|(_, value)| value);
        let fault = || self.fault("a chunked array without shape and chunks");
        let shape = self.shape(in_order(find("shape").ok_or_else(fault)?).ok_or_else(fault)?.into_iter())?;
        let chunks = in_order(find("chunks").ok_or_else(fault)?).ok_or_else(fault)?;
        let mut file_type = None;
        let mut pieces = Vec::new();
        for chunk in chunks {
            let Value::Tensor(Entry { file_type: kind, layout: Layout::Plain(bytes), .. }) = chunk else {
                return Err(self.fault("a chunk that is no array"));
            };
            if *file_type.get_or_insert(*kind) != *kind {
                return Err(self.fault("chunks of two types"));
            }
            pieces.push(bytes.clone());
        }
        let file_type = file_type.ok_or_else(fault)?;
        let bytes: usize = pieces.iter().map(Range::len).sum();
        if byte_size(&shape, file_type) != Some(bytes) {
            let error = self.fault("chunks that do not fit their array's shape").expected(format!("shape {shape:?}"));
            return Err(error.found(format!("{bytes} bytes")));
        }
        Ok(Value::Tensor(Entry { file_type, shape, layout: Layout::Pieces(pieces) }))
    }

    fn collect(&self, value: &Value, name: &str, found: &mut Collector<'_>) -> Result<()> {
        let join = |key: &str| if name.is_empty() { key.to_string() } else { format!("{name}.{key}") };
        match value {
            Value::Tensor(entry) => found.add(name.to_string(), entry.clone())?,
            Value::Map(items) => {
                for (key, value) in items {
                    self.collect(value, &join(key), found)?;
                }
            }
            Value::List(items) => {
                for (index, value) in items.iter().enumerate() {
                    self.collect(value, &join(&index.to_string()), found)?;
                }
            }
            Value::Text(_) | Value::Integer(_) | Value::Other => found.leave_out(name),
        }
        Ok(())
    }
}

/// The elements of a list, or of a map whose keys are "0", "1", ...
fn in_order(value: &Value) -> Option<Vec<&Value>> {
    match value {
        Value::List(items) => Some(items.iter().collect()),
        Value::Map(items) => {
            let mut numbered: Vec<(usize, &Value)> =
                items.iter().map(|(key, value)| Some((key.parse().ok()?, value))).collect::<Option<_>>()?;
            numbered.sort_by_key(|(number, _)| *number);
            let complete = numbered.iter().enumerate().all(|(index, (number, _))| index == *number);
            complete.then(|| numbered.into_iter().map(|(_, value)| value).collect())
        }
        _ => None,
    }
}

/// The type of a numpy name (`bfloat16` is one of ml_dtypes').
fn element_type(name: &str) -> Option<FileType> {
    Some(match name {
        "float32" => FileType::Float(DType::F32),
        "float16" => FileType::Float(DType::F16),
        "bfloat16" => FileType::Float(DType::BF16),
        "float64" => FileType::Double,
        "bool" => FileType::Other("BOOL", 1),
        "uint8" => FileType::Other("U8", 1),
        "int8" => FileType::Other("I8", 1),
        "uint16" => FileType::Other("U16", 2),
        "int16" => FileType::Other("I16", 2),
        "uint32" => FileType::Other("U32", 4),
        "int32" => FileType::Other("I32", 4),
        "uint64" => FileType::Other("U64", 8),
        "int64" => FileType::Other("I64", 8),
        "float8_e5m2" => FileType::Other("F8_E5M2", 1),
        "float8_e4m3fn" => FileType::Other("F8_E4M3", 1),
        _ => return None,
    })
}
