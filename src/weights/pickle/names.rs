//! The names of a pickle's tensors: keys of nested dictionaries joined by dots, as `state_dict()` has them.

use std::ops::Range;

use super::super::shown;
use super::super::stored::{Collector, MOST_LEVELS, MOST_VALUES};
use super::machine::{Id, Machine, Node};
use crate::error::{Error, Result};

/// Under what trainings keep the weights, beside other things; the first that is there is taken, as the tools do that
/// write them (Lightning; BasicSR, where the averaged copy comes first; timm, torchvision and others).
const WRAPPERS: [&str; 7] =
    ["state_dict", "model_state_dict", "params_ema", "params", "model_ema", "model", "state_dict_ema"];

/// Walks the values of a pickle.
pub(super) struct Names<'m, 'a> {
    machine: &'m Machine<'a>,
    /// Where each of the machine's storages lies in the file.
    runs: &'m [Range<usize>],
    steps: usize,
}

impl<'m, 'a> Names<'m, 'a> {
    /// For a pickle that has been run, whose storages lie at `runs`.
    pub fn new(machine: &'m Machine<'a>, runs: &'m [Range<usize>]) -> Self {
        Self { machine, runs, steps: 0 }
    }

    /// Adds the tensors below `root`, whose names begin with `prefix`, to `found`, and names what is none.
    pub fn collect(&mut self, root: Id, prefix: &str, found: &mut Collector<'_>) -> Result<()> {
        let (root, siblings) = self.unwrap(root)?;
        siblings.iter().for_each(|name| found.leave_out(name));
        self.walk(root, prefix, 0, found)
    }

    /// The dictionary of the weights, and the names of what lies beside it.
    fn unwrap(&mut self, root: Id) -> Result<(Id, Vec<String>)> {
        let machine = self.machine;
        let Node::Dict(pairs) = machine.node(root) else { return Ok((root, Vec::new())) };
        let child = |name: &str| pairs.iter().find(|(key, _)| self.key(*key).as_deref() == Some(name));
        let Some((name, inner)) = WRAPPERS.iter().find_map(|name| child(name).map(|(_, inner)| (*name, *inner))) else {
            return Ok((root, Vec::new()));
        };
        if !matches!(self.machine.node(inner), Node::Dict(_)) {
            return Ok((root, Vec::new()));
        }
        let mut siblings = Vec::new();
        for (key, value) in pairs {
            let key = self.key(*key).unwrap_or_else(|| machine.kind(*key));
            if key == name {
                continue;
            }
            if !is_training(&key) && self.has_tensors(*value)? {
                // A sibling that may belong to the model: every tensor keeps its whole name.
                return Ok((root, Vec::new()));
            }
            siblings.push(key);
        }
        if !self.has_tensors(inner)? {
            return Ok((root, Vec::new()));
        }
        Ok((inner, siblings))
    }

    /// Whether there is a tensor below `root`.
    fn has_tensors(&mut self, root: Id) -> Result<bool> {
        let mut open = vec![(root, 0)];
        while let Some((id, level)) = open.pop() {
            match self.machine.node(id) {
                Node::Tensor(_) => return Ok(true),
                Node::Dict(pairs) => {
                    self.count_steps(pairs.len(), level)?;
                    open.extend(pairs.iter().map(|(_, value)| (*value, level + 1)));
                }
                Node::List(items) | Node::Tuple(items) => {
                    self.count_steps(items.len(), level)?;
                    open.extend(items.iter().map(|item| (*item, level + 1)));
                }
                Node::Object { script: true, state: Some(state) } => open.push((*state, level + 1)),
                _ => {}
            }
        }
        Ok(false)
    }

    /// Values may be shared, and contain themselves: what is walked is counted, not what there is.
    fn count_steps(&mut self, count: usize, level: usize) -> Result<()> {
        self.steps += count;
        if self.steps > MOST_VALUES || level > MOST_LEVELS {
            return Err(Error::new("refused pickle")
                .at(self.machine.place)
                .expected(format!("at most {MOST_LEVELS} levels and {MOST_VALUES} values"))
                .found("values that contain each other too often"));
        }
        Ok(())
    }

    /// A key that can be part of a name.
    fn key(&self, id: Id) -> Option<String> {
        match self.machine.node(id) {
            Node::Text(range) | Node::Bytes(range) => {
                std::str::from_utf8(&self.machine.bytes[range.clone()]).ok().map(str::to_string)
            }
            Node::Int(number) => Some(number.to_string()),
            _ => None,
        }
    }

    fn walk(&mut self, id: Id, name: &str, level: usize, found: &mut Collector<'_>) -> Result<()> {
        self.count_steps(1, level)?;
        match self.machine.node(id) {
            Node::Tensor(index) => {
                let tensor = &self.machine.tensors[*index as usize];
                let name = if name.is_empty() { "tensor" } else { name };
                return found.add(name.to_string(), tensor.entry(&self.runs[tensor.storage]));
            }
            Node::Dict(pairs) => {
                for (key, value) in pairs {
                    let key = self.key(*key).unwrap_or_else(|| self.machine.kind(*key));
                    self.walk(*value, &self.join(name, &key)?, level + 1, found)?;
                }
            }
            Node::List(items) | Node::Tuple(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.walk(*item, &self.join(name, &index.to_string())?, level + 1, found)?;
                }
            }
            // The attributes of a TorchScript object are a level of their own in the pickle, not in the name.
            Node::Object { script: true, state: Some(state) } => return self.walk(*state, name, level + 1, found),
            // A module's counters and flags are no news; whole values beside the weights are.
            _ if level == 1 => found.leave_out(name),
            _ => {}
        }
        Ok(())
    }

    fn join(&self, name: &str, key: &str) -> Result<String> {
        const LONGEST: usize = 4096;
        if name.len() + key.len() > LONGEST {
            let error = Error::new("refused pickle").at(self.machine.place);
            return Err(error.expected(format!("names of at most {LONGEST} bytes")).found(shown(key)));
        }
        Ok(if name.is_empty() { key.to_string() } else { format!("{name}.{key}") })
    }
}

/// What a training keeps beside a model: another copy of the weights, the states of the optimizer and of loops.
fn is_training(key: &str) -> bool {
    const PARTS: [&str; 12] = [
        "optim",
        "callback",
        "scheduler",
        "loop",
        "scaler",
        "loss",
        "ema",
        "epoch",
        "step",
        "hyper_param",
        "rng",
        "hparams",
    ];
    let key = key.to_ascii_lowercase();
    WRAPPERS.contains(&key.as_str()) || PARTS.iter().any(|part| key.contains(part))
}
