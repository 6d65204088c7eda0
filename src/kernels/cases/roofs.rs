//! Cases of `roof_copy` and `roof_fma`. They have no f16 form.

use super::super::Limits;
use super::super::roof_copy::{self, RoofCopy};
use super::super::roof_fma::{self, RoofFma};
use super::{Case, EPS, Expected, Kernel, Tensor, Work, numbers};
use crate::tensor::DType;

impl Kernel for RoofCopy {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let x = numbers("x", self.count as usize * 4, DType::F32, 0.0, 1e6);
        let tensors = vec![Tensor::given("x", 4, DType::F32, &x), Tensor::made("y", self.count, 4, DType::F32)];
        (u64::from(self.count) * 16 <= limits.binding).then(|| Work::of(roof_copy::call(*self, limits), tensors, 1))
    }

    fn expected(&self) -> Vec<Expected> {
        let values = roof_copy::reference(&numbers("x", self.count as usize * 4, DType::F32, 0.0, 1e6));
        let tolerances = vec![0.0; values.len()];
        vec![Expected { name: "y", packed: false, places: None, values, tolerances }]
    }
}

impl Kernel for RoofFma {
    fn work(&self, limits: &Limits) -> Option<Work> {
        let x = numbers("x", self.count as usize * 4, DType::F32, 0.5, 0.5);
        let tensors = vec![Tensor::given("x", 4, DType::F32, &x), Tensor::made("y", self.count, 4, DType::F32)];
        (u64::from(self.count) * 16 <= limits.binding).then(|| Work::of(roof_fma::call(*self, limits), tensors, 1))
    }

    fn expected(&self) -> Vec<Expected> {
        let x = numbers("x", self.count as usize * 4, DType::F32, 0.5, 0.5);
        let values = roof_fma::reference(*self, &x);
        // A round rounds twice, of numbers below 3, and shrinks earlier errors by 3/4: 4 * 2 * eps * 3 in the limit; then
        // a sum of `chains` terms.
        let tolerances = vec![(24.0 + 3.0 * f64::from(self.chains)) * EPS; values.len()];
        vec![Expected { name: "y", packed: false, places: None, values, tolerances }]
    }
}

pub(super) fn cases(dtype: DType) -> Vec<Case> {
    if dtype != DType::F32 {
        return Vec::new();
    }
    let copies = [("one vector", 1), ("a group and one more", 65), ("many", 5000)];
    let copies = copies.map(|(what, count)| Case::new("roof_copy", what, dtype, RoofCopy { count }));
    let chains = [("no round", 3, 0, 1), ("one round", 65, 1, 2), ("many rounds", 130, 10, 8)];
    let chains = chains
        .map(|(what, count, rounds, chains)| Case::new("roof_fma", what, dtype, RoofFma { count, rounds, chains }));
    copies.into_iter().chain(chains).collect()
}
