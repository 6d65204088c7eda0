//! The opcodes of pickles, by CPython's names (`Lib/pickle.py`), and which are allowed.

/// An opcode that builds plain data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Mark,
    Stop,
    Pop,
    PopMark,
    Dup,
    BinInt,
    BinInt1,
    BinInt2,
    BinFloat,
    None,
    Reduce,
    /// A text whose length is so many bytes, UTF-8.
    Text(usize),
    /// Bytes (in Python 2 a string) whose length is so many bytes.
    Bytes(usize),
    Append,
    Appends,
    Build,
    Global,
    /// Recall from a memo index of so many bytes.
    Get(usize),
    /// Keep under a memo index of so many bytes.
    Put(usize),
    Memoize,
    SetItem,
    SetItems,
    EmptyDict,
    EmptyList,
    EmptyTuple,
    EmptySet,
    AddItems,
    FrozenSet,
    /// The values since the mark.
    Tuple,
    /// The last so many values.
    TupleOf(usize),
    BinPersId,
    Proto,
    NewObj,
    NewObjEx,
    Bool(bool),
    /// An integer whose length is so many bytes.
    Long(usize),
    StackGlobal,
    Frame,
}

impl Op {
    /// The allowed opcode of that code; what is refused has a name, or else is no opcode.
    pub fn parse(code: u8) -> Result<Self, &'static str> {
        Ok(match code {
            b'(' => Self::Mark,
            b'.' => Self::Stop,
            b'0' => Self::Pop,
            b'1' => Self::PopMark,
            b'2' => Self::Dup,
            b'J' => Self::BinInt,
            b'K' => Self::BinInt1,
            b'M' => Self::BinInt2,
            b'G' => Self::BinFloat,
            b'N' => Self::None,
            b'R' => Self::Reduce,
            b'X' => Self::Text(4),
            0x8c => Self::Text(1),
            0x8d => Self::Text(8),
            b'T' | b'B' => Self::Bytes(4),
            b'U' | b'C' => Self::Bytes(1),
            0x8e | 0x96 => Self::Bytes(8),
            b'a' => Self::Append,
            b'e' => Self::Appends,
            b'b' => Self::Build,
            b'c' => Self::Global,
            b'h' => Self::Get(1),
            b'j' => Self::Get(4),
            b'q' => Self::Put(1),
            b'r' => Self::Put(4),
            0x94 => Self::Memoize,
            b's' => Self::SetItem,
            b'u' => Self::SetItems,
            b'}' => Self::EmptyDict,
            b']' => Self::EmptyList,
            b')' => Self::EmptyTuple,
            0x8f => Self::EmptySet,
            0x90 => Self::AddItems,
            0x91 => Self::FrozenSet,
            b't' => Self::Tuple,
            0x85 => Self::TupleOf(1),
            0x86 => Self::TupleOf(2),
            0x87 => Self::TupleOf(3),
            b'Q' => Self::BinPersId,
            0x80 => Self::Proto,
            0x81 => Self::NewObj,
            0x92 => Self::NewObjEx,
            0x88 => Self::Bool(true),
            0x89 => Self::Bool(false),
            0x8a => Self::Long(1),
            0x8b => Self::Long(4),
            0x93 => Self::StackGlobal,
            0x95 => Self::Frame,
            _ => return Err(refused(code)),
        })
    }
}

/// The name of an opcode that is not allowed: those of protocols 0 and 1 that no checkpoint has (INST and OBJ make
/// objects of any class), and those that refer to what lies outside of the file.
fn refused(code: u8) -> &'static str {
    match code {
        b'F' => "FLOAT",
        b'I' => "INT",
        b'L' => "LONG",
        b'P' => "PERSID",
        b'S' => "STRING",
        b'V' => "UNICODE",
        b'd' => "DICT",
        b'g' => "GET",
        b'i' => "INST",
        b'l' => "LIST",
        b'o' => "OBJ",
        b'p' => "PUT",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => "no opcode",
    }
}
