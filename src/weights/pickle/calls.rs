//! What a pickle's calls mean: descriptions of storages and tensors, dictionaries, and objects without content.

use super::super::stored::{FileType, MOST_TENSORS, MOST_VALUES};
use super::globals::Global;
use super::machine::{Id, Machine, Node};
use super::tensors::{Storage, Tensor};
use crate::error::Result;

impl Machine<'_> {
    /// REDUCE: the result of `function(*arguments)` for the few functions whose meaning is known.
    pub(super) fn reduce(&mut self, function: Id, arguments: Id) -> Result<()> {
        let Some(global) = self.global(function) else {
            return Err(self.refuse(format_args!("REDUCE calls {}", self.kind(function))));
        };
        // No call that is known takes more; a long tuple copied by many calls would be a bomb.
        const MOST_ARGUMENTS: usize = 16;
        let arguments = match self.node(arguments) {
            Node::Tuple(arguments) if arguments.len() <= MOST_ARGUMENTS => arguments.clone(),
            _ => return Err(self.refuse(format_args!("REDUCE {} without a short tuple", self.kind(function)))),
        };
        if global != Global::RebuildFromType {
            return self.apply(function, global, &arguments);
        }
        // (function, class, its arguments, attributes): the call that `torch.Tensor` subclasses are wrapped in.
        let &[inner, class, inner_arguments, _] = arguments.as_slice() else {
            return Err(self.refuse("`torch._tensor._rebuild_from_type_v2` without four arguments"));
        };
        let class_known = self.global(class) == Some(Global::TensorClass);
        match (self.global(inner), self.node(inner_arguments)) {
            (Some(global), Node::Tuple(arguments))
                if class_known && global.rebuilds() && arguments.len() <= MOST_ARGUMENTS =>
            {
                let arguments = arguments.clone();
                self.apply(inner, global, &arguments)
            }
            _ => Err(self.refuse(format_args!("a tensor of class {} made by {}", self.kind(class), self.kind(inner)))),
        }
    }

    fn apply(&mut self, function: Id, global: Global, arguments: &[Id]) -> Result<()> {
        match global {
            Global::RebuildTensor | Global::RebuildTensorV3 => {
                let tensor = self.tensor(global == Global::RebuildTensorV3, arguments)?;
                if self.tensors.len() >= MOST_TENSORS {
                    return Err(self.refuse(format_args!("more than {MOST_TENSORS} tensors")));
                }
                self.push(Node::Tensor(self.tensors.len() as u32));
                self.tensors.push(tensor);
            }
            Global::RebuildParameter => match arguments.first() {
                Some(&data) if matches!(self.node(data), Node::Tensor(_)) => self.push_id(data),
                _ => return Err(self.refuse("a parameter that is no tensor")),
            },
            Global::RestoreTag | Global::Size => match arguments.first() {
                Some(&value) => self.push_id(value),
                None => return Err(self.refuse(format_args!("REDUCE {} without arguments", self.kind(function)))),
            },
            Global::Dict => {
                let pairs = self.pairs(arguments)?;
                self.copied += pairs.len();
                if self.copied > MOST_VALUES {
                    return Err(self.refuse(format_args!("more than {MOST_VALUES} values")));
                }
                self.push(Node::Dict(pairs));
            }
            Global::Opaque => self.push(Node::Object { script: false, state: None }),
            Global::Storage(_)
            | Global::UntypedStorage
            | Global::Element(_)
            | Global::RebuildFromType
            | Global::TensorClass
            | Global::Script => {
                return Err(self.refuse(format_args!("REDUCE {}", self.kind(function))));
            }
        }
        Ok(())
    }

    /// The pairs of `OrderedDict()` or `OrderedDict([[key, value], ...])`.
    fn pairs(&self, arguments: &[Id]) -> Result<Vec<(Id, Id)>> {
        let Some(&list) = arguments.first() else { return Ok(Vec::new()) };
        let fault = || self.refuse("`collections.OrderedDict` made of something else than pairs");
        let items = match self.node(list) {
            Node::Dict(pairs) => return Ok(pairs.clone()),
            Node::List(items) | Node::Tuple(items) => items,
            _ => return Err(fault()),
        };
        let pair = |item: &Id| match self.node(*item) {
            Node::List(pair) | Node::Tuple(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
            _ => Err(fault()),
        };
        items.iter().map(pair).collect()
    }

    /// (storage, offset, shape, strides, requires_grad, hooks[, element type][, metadata])
    fn tensor(&self, typed: bool, arguments: &[Id]) -> Result<Tensor> {
        let fault = |what: &str| self.refuse(format_args!("a tensor with {what}"));
        let [storage, offset, shape, strides, rest @ ..] = arguments else { return Err(fault("too few arguments")) };
        let Node::Storage(storage) = *self.node(*storage) else {
            return Err(fault(&format!("{} for a storage", self.kind(*storage))));
        };
        let (element, metadata) = if typed { (rest.get(2), rest.get(3)) } else { (None, rest.get(2)) };
        let element = match element.map(|id| self.global(*id)) {
            Some(Some(Global::Element(kind))) => Some(kind),
            Some(_) => return Err(fault("an element type that is none")),
            None => None,
        };
        if let Some(metadata) = metadata {
            // Marks that the values are to be negated or conjugated when read.
            let empty = match self.node(*metadata) {
                Node::None => true,
                Node::Dict(pairs) => pairs.iter().all(|(_, value)| matches!(self.node(*value), Node::Bool(false))),
                _ => false,
            };
            if !empty {
                return Err(fault("a negated or conjugated storage"));
            }
        }
        let offset = self.index(*offset).ok_or_else(|| fault("an offset that is no index"))?;
        let shape = self.indices(*shape).ok_or_else(|| fault("a shape that is none"))?;
        let strides = self.indices(*strides).ok_or_else(|| fault("strides that are none"))?;
        let storage_of = &self.storages[storage as usize];
        let kind = storage_of.kind.or(element).filter(|kind| element.is_none_or(|other| other == *kind));
        let kind = kind.ok_or_else(|| fault("an element type other than its storage's"))?;
        Tensor::new(storage as usize, storage_of, kind, offset, shape, strides).map_err(|what| fault(&what))
    }

    pub(super) fn index(&self, id: Id) -> Option<usize> {
        if let Node::Int(value) = self.node(id) { usize::try_from(*value).ok() } else { None }
    }

    fn indices(&self, id: Id) -> Option<Vec<usize>> {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) if items.len() <= super::super::stored::MOST_AXES => {
                items.iter().map(|item| self.index(*item)).collect()
            }
            _ => None,
        }
    }

    /// NEWOBJ, NEWOBJ_EX: an object of an allowed class.
    pub(super) fn new_object(&mut self, op: &str, class: Id) -> Result<()> {
        match self.global(class) {
            Some(Global::Dict) => self.push(Node::Dict(Vec::new())),
            Some(Global::Opaque) => self.push(Node::Object { script: false, state: None }),
            Some(Global::Script) => self.push(Node::Object { script: true, state: None }),
            _ => return Err(self.refuse(format_args!("{op} {}", self.kind(class)))),
        }
        Ok(())
    }

    /// BUILD: gives an object its attributes. Those of a dictionary (a state dict's versions of its modules) are dropped.
    pub(super) fn build(&mut self, object: Id, state: Id) -> Result<()> {
        match &mut self.nodes[object as usize] {
            Node::Dict(_) => Ok(()),
            Node::Object { state: own @ None, .. } => {
                *own = Some(state);
                Ok(())
            }
            _ => Err(self.refuse(format_args!("BUILD on {}", self.kind(object)))),
        }
    }

    /// BINPERSID: ("storage", class, key, device, count[, view]), the one persistent id that PyTorch writes.
    pub(super) fn persistent(&mut self, key: Id) -> Result<()> {
        let fault = |machine: &Self, what: &str| machine.refuse(format_args!("a persistent id with {what}"));
        let Node::Tuple(parts) = self.node(key) else { return Err(fault(self, "something else than a tuple")) };
        let [tag, class, key, _device, count, view @ ..] = parts.as_slice() else {
            return Err(fault(self, "too few parts"));
        };
        match self.node(*tag) {
            Node::Text(tag) | Node::Bytes(tag) if self.text(tag) == "storage" => {}
            Node::Text(tag) | Node::Bytes(tag) => {
                return Err(fault(self, &format!("the tag `{}`", super::super::shown(self.text(tag)))));
            }
            _ => return Err(fault(self, "a tag that is no string")),
        }
        let kind: Option<FileType> = match self.global(*class) {
            Some(Global::Storage(kind)) => Some(kind),
            Some(Global::UntypedStorage) => None,
            _ => return Err(fault(self, &format!("{} for a storage class", self.kind(*class)))),
        };
        let (Node::Text(key) | Node::Bytes(key)) = self.node(*key) else {
            return Err(fault(self, "a key that is no string"));
        };
        let key = key.clone();
        let count = self.index(*count).ok_or_else(|| fault(self, "a count that is none"))?;
        let view = match view.first().map(|view| self.node(*view)) {
            None | Some(Node::None) => None,
            Some(Node::Tuple(view)) if view.len() == 3 => match (self.index(view[1]), self.index(view[2])) {
                (Some(offset), Some(length)) => Some((offset, length)),
                _ => return Err(fault(self, "a view that is none")),
            },
            Some(_) => return Err(fault(self, "a view that is none")),
        };
        let storage = Storage::new(key, kind, count, view).map_err(|what| fault(self, &what))?;
        if self.storages.len() >= MOST_TENSORS {
            return Err(self.refuse(format_args!("more than {MOST_TENSORS} storages")));
        }
        self.push(Node::Storage(self.storages.len() as u32));
        self.storages.push(storage);
        Ok(())
    }
}
