//! A pickle's stack machine that builds a graph of plain values and calls nothing.
//!
//! Values live in one arena and refer to each other by index, so a value that contains itself or lies a million levels deep is
//! neither copied nor walked here. Text stays where it is in the file. Memory is at most some tens of bytes for each
//! byte of the pickle, and [`MOST_VALUES`] bounds that.

use std::collections::HashMap;
use std::ops::Range;

use super::super::shown;
use super::super::stored::MOST_VALUES;
use super::globals::{self, Global};
use super::opcodes::Op;
use super::tensors::{Storage, Tensor};
use crate::error::{Error, Result};

/// A value's index.
pub(super) type Id = u32;

/// A value.
#[derive(Debug, Clone)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits: its bytes, little-endian.
    Long(Range<usize>),
    Float,
    /// UTF-8 in the pickle.
    Text(Range<usize>),
    /// Bytes in the pickle.
    Bytes(Range<usize>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A set, whose elements nobody asks for.
    Set,
    /// By index in [`Machine::globals`].
    Global(u32),
    /// By index in [`Machine::storages`].
    Storage(u32),
    /// By index in [`Machine::tensors`].
    Tensor(u32),
    /// An object without content, or a TorchScript object with its attributes.
    Object {
        script: bool,
        state: Option<Id>,
    },
}

/// A pickle on its way, or run to its end.
pub(super) struct Machine<'a> {
    pub bytes: &'a [u8],
    pub place: &'a str,
    /// Where the next opcode is; after the run, where the pickle ends.
    pub at: usize,
    pub nodes: Vec<Node>,
    /// Imported names: what each stands for, module and name.
    pub globals: Vec<(Global, Range<usize>, Range<usize>)>,
    pub storages: Vec<Storage>,
    pub tensors: Vec<Tensor>,
    /// Where the opcode that is being run is.
    opcode_at: usize,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Values that calls have copied out of lists.
    pub copied: usize,
    script: bool,
}

impl<'a> Machine<'a> {
    /// A machine for the pickle that begins at `start` of `bytes`. `script`: TorchScript's classes are allowed.
    pub fn new(bytes: &'a [u8], start: usize, place: &'a str, script: bool) -> Self {
        Self {
            bytes,
            place,
            at: start,
            nodes: Vec::new(),
            globals: Vec::new(),
            storages: Vec::new(),
            tensors: Vec::new(),
            opcode_at: start,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            copied: 0,
            script,
        }
    }

    /// An error at the opcode that is being run.
    pub fn refuse(&self, what: impl std::fmt::Display) -> Error {
        Error::new("refused pickle")
            .at(format!("{}: offset {}", self.place, self.opcode_at))
            .expected("tensors and plain data")
            .found(what)
            .hint("a .safetensors file of the same weights")
    }

    /// Runs to STOP; the value that was left.
    pub fn run(&mut self) -> Result<Id> {
        let first = self.operation()?;
        if first != Op::Proto {
            return Err(self.refuse("a pickle of protocol 0 or 1"));
        }
        let protocol = self.take(1)?[0];
        if !(2..=5).contains(&protocol) {
            return Err(self.refuse(format_args!("protocol {protocol}")));
        }
        loop {
            match self.operation()? {
                Op::Stop => break,
                op => self.step(op)?,
            }
            // An opcode adds one to any of them at most.
            if self.nodes.len() >= MOST_VALUES || self.stack.len() >= MOST_VALUES || self.memo.len() >= MOST_VALUES {
                return Err(self.refuse(format_args!("more than {MOST_VALUES} values")));
            }
        }
        let root = self.pop()?;
        if !self.stack.is_empty() || !self.marks.is_empty() {
            return Err(self.refuse("values left on the stack"));
        }
        Ok(root)
    }

    fn operation(&mut self) -> Result<Op> {
        self.opcode_at = self.at;
        let code = self.take(1)?[0];
        Op::parse(code).map_err(|name| self.refuse(format_args!("opcode 0x{code:02x} ({name})")))
    }

    /// The next `count` bytes.
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let range = self.range(count)?;
        Ok(&self.bytes[range])
    }

    /// Where the next `count` bytes are.
    fn range(&mut self, count: usize) -> Result<Range<usize>> {
        if count > self.bytes.len() - self.at {
            let error = Error::new("truncated pickle").at(format!("{}: offset {}", self.place, self.opcode_at));
            let error = error.expected(format!("{count} bytes")).found(format!("{}", self.bytes.len() - self.at));
            return Err(error.hint("downloading the file again"));
        }
        let range = self.at..self.at + count;
        self.at += count;
        Ok(range)
    }

    /// A length of `bytes` bytes, and that many bytes behind it.
    fn counted(&mut self, bytes: usize) -> Result<Range<usize>> {
        let length = self.unsigned(bytes)?;
        self.range(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn unsigned(&mut self, bytes: usize) -> Result<u64> {
        let taken = self.take(bytes)?;
        Ok(taken.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// A line of a GLOBAL, without its end.
    fn line(&mut self) -> Result<Range<usize>> {
        const LONGEST: usize = 1024;
        let rest = &self.bytes[self.at..];
        let end = rest.iter().take(LONGEST).position(|byte| *byte == b'\n');
        let Some(end) = end else { return Err(self.refuse("GLOBAL without an end")) };
        let range = self.at..self.at + end;
        self.at += end + 1;
        Ok(range)
    }

    pub fn push(&mut self, node: Node) {
        let id = self.nodes.len() as Id;
        self.nodes.push(node);
        self.stack.push(id);
    }

    pub fn push_id(&mut self, id: Id) {
        self.stack.push(id);
    }

    /// Takes the top of the stack, which must lie above the last mark.
    pub fn pop(&mut self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => self.stack.pop().ok_or_else(|| self.refuse("an empty stack")),
            false => Err(self.refuse("an opcode that takes more from the stack than there is")),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| self.refuse("an opcode that needs a mark without one"))?;
        Ok(self.stack.split_off(mark))
    }

    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    /// What an imported name stands for; `None` for another value.
    pub fn global(&self, id: Id) -> Option<Global> {
        match self.node(id) {
            Node::Global(index) => Some(self.globals[*index as usize].0),
            _ => None,
        }
    }

    /// Bytes of the pickle as text for errors and names.
    pub fn text(&self, range: &Range<usize>) -> &'a str {
        std::str::from_utf8(&self.bytes[range.clone()]).unwrap_or("?")
    }

    /// What a value is, for errors.
    pub fn kind(&self, id: Id) -> String {
        match self.node(id) {
            Node::Global(index) => {
                let (_, module, name) = &self.globals[*index as usize];
                self.global_name(module, name)
            }
            Node::None => "None".into(),
            Node::Bool(_) => "a bool".into(),
            Node::Int(_) | Node::Long(_) => "an integer".into(),
            Node::Float => "a float".into(),
            Node::Text(_) => "a string".into(),
            Node::Bytes(_) => "bytes".into(),
            Node::List(_) => "a list".into(),
            Node::Tuple(_) => "a tuple".into(),
            Node::Dict(_) => "a dictionary".into(),
            Node::Set => "a set".into(),
            Node::Storage(_) => "a storage".into(),
            Node::Tensor(_) => "a tensor".into(),
            Node::Object { .. } => "an object".into(),
        }
    }

    pub fn global_name(&self, module: &Range<usize>, name: &Range<usize>) -> String {
        format!("`{}.{}`", shown(self.text(module)), shown(self.text(name)))
    }

    fn import(&mut self, op: &str, module: Range<usize>, name: Range<usize>) -> Result<()> {
        match globals::find(self.text(&module), self.text(&name), self.script) {
            Some(global) => {
                self.push(Node::Global(self.globals.len() as u32));
                self.globals.push((global, module, name));
            }
            None => return Err(self.refuse(format_args!("{op} {}", self.global_name(&module, &name)))),
        }
        Ok(())
    }

    fn step(&mut self, op: Op) -> Result<()> {
        match op {
            Op::None => self.push(Node::None),
            Op::Bool(value) => self.push(Node::Bool(value)),
            Op::EmptyDict => self.push(Node::Dict(Vec::new())),
            Op::EmptyList => self.push(Node::List(Vec::new())),
            Op::EmptyTuple => self.push(Node::Tuple(Vec::new())),
            Op::EmptySet => self.push(Node::Set),
            Op::BinInt => {
                let value = self.unsigned(4)? as u32;
                self.push(Node::Int(i64::from(value.cast_signed())));
            }
            Op::BinInt1 => {
                let value = self.take(1)?[0];
                self.push(Node::Int(i64::from(value)));
            }
            Op::BinInt2 => {
                let value = self.unsigned(2)?;
                self.push(Node::Int(value.cast_signed()));
            }
            Op::BinFloat => {
                self.take(8)?;
                self.push(Node::Float);
            }
            Op::Long(bytes) => {
                let range = self.counted(bytes)?;
                let node = integer(&self.bytes[range.clone()]).map_or(Node::Long(range), Node::Int);
                self.push(node);
            }
            Op::Text(bytes) => {
                let range = self.counted(bytes)?;
                if std::str::from_utf8(&self.bytes[range.clone()]).is_err() {
                    return Err(self.refuse("text that is not UTF-8"));
                }
                self.push(Node::Text(range));
            }
            Op::Bytes(bytes) => {
                let range = self.counted(bytes)?;
                self.push(Node::Bytes(range));
            }
            Op::Proto => return Err(self.refuse("PROTO within a pickle")),
            Op::Frame => {
                let length = self.unsigned(8)?;
                if length > (self.bytes.len() - self.at) as u64 {
                    return Err(self.refuse(format_args!("a frame of {length} bytes, more than there are")));
                }
            }
            Op::Mark => self.marks.push(self.stack.len()),
            Op::Stop => {}
            _ => return self.combine(op),
        }
        Ok(())
    }

    /// The opcodes that take values from the stack.
    fn combine(&mut self, op: Op) -> Result<()> {
        match op {
            Op::Pop if self.marks.last() == Some(&self.stack.len()) => {
                self.marks.pop();
            }
            Op::Pop => {
                self.pop()?;
            }
            Op::PopMark => {
                self.pop_to_mark()?;
            }
            Op::Dup => {
                let top = self.pop()?;
                self.stack.extend([top, top]);
            }
            Op::Get(bytes) => {
                let index = self.unsigned(bytes)? as u32;
                let id = self.memo.get(&index).copied();
                let id =
                    id.ok_or_else(|| self.refuse(format_args!("a memo index {index} that nothing was kept under")))?;
                self.stack.push(id);
            }
            Op::Put(bytes) => {
                let index = self.unsigned(bytes)? as u32;
                self.keep(index)?;
            }
            Op::Memoize => self.keep(self.memo.len() as u32)?,
            Op::Tuple => {
                let items = self.pop_to_mark()?;
                self.push(Node::Tuple(items));
            }
            Op::TupleOf(count) => {
                let mut items = Vec::with_capacity(count);
                for _ in 0..count {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push(Node::Tuple(items));
            }
            Op::FrozenSet => {
                self.pop_to_mark()?;
                self.push(Node::Set);
            }
            Op::Append => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            Op::Appends | Op::AddItems => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            Op::SetItem => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            Op::SetItems => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)?;
            }
            Op::Global => {
                let (module, name) = (self.line()?, self.line()?);
                self.import("GLOBAL", module, name)?;
            }
            Op::StackGlobal => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Node::Text(module), Node::Text(name)) = (self.node(module).clone(), self.node(name).clone())
                else {
                    return Err(self.refuse("STACK_GLOBAL without two names"));
                };
                self.import("STACK_GLOBAL", module, name)?;
            }
            other => self.call(other)?,
        }
        Ok(())
    }

    /// The opcodes that would call something.
    fn call(&mut self, op: Op) -> Result<()> {
        match op {
            Op::Reduce => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.reduce(function, arguments)
            }
            Op::NewObj => {
                let (_, class) = (self.pop()?, self.pop()?);
                self.new_object("NEWOBJ", class)
            }
            Op::NewObjEx => {
                let (_, _, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.new_object("NEWOBJ_EX", class)
            }
            Op::Build => {
                let (state, object) = (self.pop()?, self.pop()?);
                self.build(object, state)?;
                self.push_id(object);
                Ok(())
            }
            Op::BinPersId => {
                let key = self.pop()?;
                self.persistent(key)
            }
            other => Err(self.refuse(format_args!("opcode {other:?}"))),
        }
    }

    fn keep(&mut self, index: u32) -> Result<()> {
        let top = self.pop()?;
        self.stack.push(top);
        self.memo.insert(index, top);
        Ok(())
    }

    /// Appends to the list, set or object at the top of the stack.
    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let list = self.pop()?;
        self.stack.push(list);
        match &mut self.nodes[list as usize] {
            Node::List(own) => own.extend(items),
            Node::Set | Node::Object { .. } => {}
            _ => return Err(self.refuse(format_args!("elements appended to {}", self.kind(list)))),
        }
        Ok(())
    }

    /// Puts keys and values, in turn, into the dictionary or object at the top of the stack.
    fn set_items(&mut self, items: &[Id]) -> Result<()> {
        let dict = self.pop()?;
        self.stack.push(dict);
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.refuse("a key without a value"));
        }
        match &mut self.nodes[dict as usize] {
            Node::Dict(own) => own.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            Node::Object { .. } => {}
            _ => return Err(self.refuse(format_args!("items put into {}", self.kind(dict)))),
        }
        Ok(())
    }
}

/// An integer of at most eight bytes, two's complement, little-endian.
fn integer(bytes: &[u8]) -> Option<i64> {
    let mut whole = match bytes.last() {
        Some(last) if last & 0x80 != 0 => [0xff; 8],
        _ => [0; 8],
    };
    whole.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(whole))
}
