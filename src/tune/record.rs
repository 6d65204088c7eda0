//! What was found out about an adapter's candidates.

use std::collections::BTreeMap;

use crate::kernels::cases::Candidate;
use crate::kernels::tuning::{Class, Tuning};

/// One candidate of a class.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Its name, as its kernel's file has it.
    pub name: String,
    /// Why it must not be used.
    pub fault: Option<String>,
    /// Seconds of one run of the class's contest, if it was timed.
    pub seconds: Option<f64>,
}

/// The candidates of a class, the best guess first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClassRecord {
    /// All of them.
    pub candidates: Vec<Outcome>,
}

impl ClassRecord {
    /// The candidate with the shortest time among those without a fault.
    pub fn fastest(&self) -> Option<usize> {
        let timed = self.candidates.iter().enumerate().filter(|(_, outcome)| outcome.fault.is_none());
        let timed = timed.filter_map(|(index, outcome)| Some((index, outcome.seconds?)));
        timed.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(index, _)| index)
    }
}

/// What was found out, by class.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    /// Whether candidates were timed.
    pub timed: bool,
    /// The classes that were looked at.
    pub classes: BTreeMap<Class, ClassRecord>,
}

impl Record {
    /// The entry of a class, made from its candidates if it is new. Where problems of one class have lists of different
    /// lengths, the longest counts.
    pub fn class(&mut self, class: Class, candidates: &[Candidate]) -> &mut ClassRecord {
        let entry = self.classes.entry(class).or_default();
        let known = entry.candidates.len().min(candidates.len());
        let new = candidates[known..].iter();
        entry.candidates.extend(new.map(|found| Outcome { name: found.name.clone(), fault: None, seconds: None }));
        entry
    }

    /// The table that a device is given.
    pub fn tuning(&self) -> Tuning {
        let mut tuning = Tuning::default();
        for (class, record) in &self.classes {
            if let Some(fastest) = record.fastest() {
                tuning.set_fastest(*class, fastest);
            }
            let faults = record.candidates.iter().enumerate().filter(|(_, outcome)| outcome.fault.is_some());
            faults.for_each(|(index, _)| tuning.set_unfit(*class, index));
        }
        tuning
    }

    /// What must not be used: class, candidate and why.
    pub fn faults(&self) -> impl Iterator<Item = (Class, &str, &str)> {
        self.classes.iter().flat_map(|(class, record)| {
            let faults = record.candidates.iter();
            faults.filter_map(|outcome| Some((*class, outcome.name.as_str(), outcome.fault.as_deref()?)))
        })
    }
}
